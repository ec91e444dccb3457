"""The rules as people and programs read them: `launch rules` and docs/rules.md."""

from __future__ import annotations

import textwrap
from typing import Any

from launcher.config.convert_checks import CONVERT_CHECKS
from launcher.config.data_checks import DATA_CHECKS
from launcher.config.resume_checks import RESUME_CHECKS
from launcher.config.rules import RULES
from launcher.config.submit_checks import SUBMIT_CHECKS

# Checks that are not rows of RULES: the schema, the composition, the command line and the reader
# of data make them. Id, what it blames, what must hold, why.
BASIC_CHECKS = (
    ("unknown-key", "any key", "the schema knows the key", "A typo must not be ignored."),
    ("unknown-value", "any key", "the value is one of the key's choices", "Nor one in a value."),
    ("wrong-type", "any key", "the value has the key's type", "1e3 is not a whole number."),
    ("out-of-range", "any key", "the value is within the key's bounds", "Degrees start at 1."),
    ("missing-key", "any key", "keys without a default have a value", "Nothing is guessed."),
    (
        "schedule-file-readable",
        "parallelism.schedule",
        "the file of a schedule can be read",
        "Workers never read it: run.yaml carries its text.",
    ),
    (
        "schedule-file-fits",
        "parallelism.schedule",
        "the schedule in the file can run, and pp, vpp and num_microbatches are its own",
        "It is checked for lost, doubled and misplaced actions and walked once for deadlocks.",
    ),
    (
        "schedule-lines-from-a-file",
        "parallelism.schedule_lines",
        "the lines of a schedule come with the file that parallelism.schedule names",
        "run.yaml keeps them; beside a name they would run in its place.",
    ),
    (
        "yaml-eaten",
        "text keys",
        "text stays text",
        "YAML 1.1 reads 12:00:00 as 43200, 010 as 8 and no as false.",
    ),
    (
        "text-on-one-line",
        "text keys",
        "text is one line without control characters",
        "It is written into scripts, where a second line would be a second command.",
    ),
    (
        "no-environment",
        "any key",
        "no ${oc.env:...}",
        "run.yaml would hold the value, which may be a secret.",
    ),
    ("interpolation", "any key", "${...} names a key with a value", "Nothing is guessed."),
    ("unknown-option", "any group", "the group has the option", "A typo must not be ignored."),
    ("one-option", "any group", "one option of a group is chosen", "Two would be merged blindly."),
    ("unknown-group", "any group", "a conf tree has the group", "A typo must not be ignored."),
    (
        "group-not-in-use",
        "nested groups",
        "group/inner=option needs an option of group that has the inner group",
        "The choice would have no effect; +group/inner=option adds it.",
    ),
    (
        "unknown-package",
        "any group",
        "group@package=option is not used",
        "The schema has one place for every group.",
    ),
    ("composition", "config", "Hydra can compose the configuration", "Its own message follows."),
    ("override-syntax", "overrides", "an override is key=value", "Hydra's grammar reads it."),
    (
        "sweep-without-m",
        "overrides",
        "several values come with -m",
        "One run has one value for each key.",
    ),
    ("empty-sweep", "overrides", "a sweep has a value", "There would be no run."),
    (
        "no-such-directory",
        "--config-dir, hydra.searchpath",
        "the folder exists",
        "A wrong path would hide the options in it.",
    ),
    ("unknown-verb", "command line", "the first word is a verb", "A typo must not be ignored."),
    ("unknown-flag", "command line", "the flag exists", "A typo must not be ignored."),
    ("flag-value", "command line", "the flag takes this value", "A typo must not be ignored."),
    ("unused-override", "command line", "the verb reads overrides", "None may be ignored."),
    ("unused-flag", "command line", "the verb has the flag", "A flag must not be ignored."),
    (
        "planned-only",
        "run, verify",
        "workers can do it",
        "Experts, latent attention, encoders, offload, shard_size and recompute_every are planned.",
    ),
    (
        "kernel-table-readable",
        "hardware.kernels",
        "the file is a table of measured kernels",
        "The plan uses it instead of its model.",
    ),
    ("one-table", "launch backtest", "one file is named", "Each table is judged by itself."),
    ("unreadable-table", "launch backtest", "the file is text", "Nothing else can be predicted."),
    ("empty-table", "launch backtest", "the file has rows", "There would be nothing to predict."),
    ("bad-table", "launch backtest", "the file is a CSV", "Its rows are measured runs."),
    ("missing-column", "launch backtest", "needed columns are there", "Every row needs them."),
    ("broken-row", "launch backtest", "a row's cells can be read", "The others are answered."),
    (
        "no-local-gpu",
        "hardware.device",
        "device=cuda on hardware=local needs a GPU here",
        "The job would fail when its workers start.",
    ),
    (
        "file-not-writable",
        "--html, --trace",
        "the file can be written",
        "The plan would be lost after it was made.",
    ),
    (
        "one-plan-per-file",
        "--html, --trace",
        "every file that is asked for holds one plan",
        "The last one would overwrite the others.",
    ),
    *DATA_CHECKS,
    *CONVERT_CHECKS,
    *RESUME_CHECKS,
    *SUBMIT_CHECKS,
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
    """docs/rules.md."""
    from launcher.config.compatibility import render_compatibility

    head = (
        "# Rules\n\n"
        "Every configuration is checked against all of these, and all findings are reported at\n"
        "once, with exit code 2. Generated from the table that does the checking; `launch rules`\n"
        "prints the same.\n\n"
        "| rule | key | what must hold | why |\n|---|---|---|---|\n"
    )
    rows = [
        "| " + " | ".join(str(row[key]).replace("|", "\\|") for key in _COLUMNS) + " |"
        for row in rules_document()
    ]
    together = (
        "\n## What goes together\n\n"
        "Ways of cutting the model (rows) beside other options, judged by the rules above.\n\n"
    )
    return head + "\n".join(rows) + "\n" + together + render_compatibility()


_COLUMNS = ("id", "field", "says", "why")


if __name__ == "__main__":
    print(render_rules_markdown(), end="")  # > docs/rules.md
