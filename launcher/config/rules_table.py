"""The rules as people and programs read them: `launch rules` and docs/rules.md."""

from __future__ import annotations

import textwrap
from typing import Any

from launcher.config.rules import RULES

# Checks that are not rows of RULES: the schema and the composition make them.
BASIC_CHECKS = (
    ("unknown-key", "any key", "the schema knows the key", "A typo must not be ignored."),
    ("unknown-option", "any group", "the group has the option", "A typo must not be ignored."),
    ("unknown-value", "any key", "the value is one of the key's choices", "As above."),
    ("wrong-type", "any key", "the value has the key's type", "1e3 is not a whole number."),
    ("out-of-range", "any key", "the value is within the key's bounds", "Degrees start at 1."),
    ("missing-key", "any key", "keys without a default have a value", "Nothing is guessed."),
    (
        "yaml-eaten",
        "text keys",
        "text stays text",
        "YAML 1.1 reads 12:00:00 as 43200, 007 as 7 and no as false.",
    ),
    (
        "no-environment",
        "any key",
        "no ${oc.env:...}",
        "run.yaml would hold the value, which may be a secret.",
    ),
)


def rules_document() -> list[dict[str, Any]]:
    """One object per rule: id, field, says, why."""
    basic = [
        {"id": name, "field": field, "says": says, "why": why}
        for name, field, says, why in BASIC_CHECKS
    ]
    return basic + [
        {"id": rule.id, "field": rule.field, "says": rule.says, "why": rule.why} for rule in RULES
    ]


def render_rules(width: int = 100) -> str:
    """The table as text: id and field, then what must hold and why, wrapped."""
    lines = []
    for row in rules_document():
        lines.append(f"{row['id']}  ({row['field']})")
        for text in (row["says"] + ".", row["why"]):
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
        lines.append("")
    return "\n".join(lines)


def render_rules_markdown() -> str:
    """The table of docs/rules.md."""
    head = "| rule | key | what must hold | why |\n|---|---|---|---|\n"
    rows = [
        "| " + " | ".join(str(row[key]).replace("|", "\\|") for key in _COLUMNS) + " |"
        for row in rules_document()
    ]
    return head + "\n".join(rows) + "\n"


_COLUMNS = ("id", "field", "says", "why")
