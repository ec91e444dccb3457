"""A value to try for a mistake that names none: what stood there before, or what our own files say.

Only for what is wrong: each question composes the configuration once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config.quick_compose import compose_values
from launcher.config.quoting import hydra_text
from launcher.config.validate import field_at
from launcher.errors import ConfigError, Finding

EXAMPLES = (
    ("hardware=h100x8", "model=mixtral_8x7b"),
    ("hardware=h100x8", "model=deepseek_v3"),
    ("hardware=h100x8", "model=t5_3b"),
)
"""Compositions that have a value for nearly every key."""

WITHOUT_VALUE = ("out-of-range", "wrong-type", "missing-key")
"""Rules of the schema that know no value by themselves."""


TOO_SMALL = "it must be at least"
"""The least number that is legal here, 1 node or 1 word, is seldom one that suits the rest."""


def with_remedies(
    findings: Iterable[Finding], overrides: Sequence[str], config_dirs: Sequence[Path]
) -> list[Finding]:
    """The same findings, those without a fix with one where it can be known."""
    return [
        replace(finding, fix=_fix(finding, overrides, config_dirs) or finding.fix)
        if not finding.fix or TOO_SMALL in finding.reason
        else finding
        for finding in findings
    ]


def _fix(finding: Finding, overrides: Sequence[str], config_dirs: Sequence[Path]) -> str:
    key = finding.field
    if finding.rule == "unknown-option":
        default = compose_values(EXAMPLES[0][:1]).choices.get(key)  # no recipe
        return f"{key}={default if default in finding.legal else finding.legal[0]}"
    if finding.rule not in WITHOUT_VALUE:
        return ""
    others = [line for line in overrides if line.partition("=")[0].lstrip("+") != key]
    found: Any = MISSING
    if len(others) < len(overrides):
        found = _value(key, others, config_dirs)
    for example in () if finding.fix else EXAMPLES:
        if found is MISSING or (found is None and finding.rule == "missing-key"):
            found = _value(key, example, ())
    if found is MISSING and len(others) < len(overrides):  # a key that no file names
        field = field_at(tuple(key.split(".")))
        found = None if field is not None and field.default is None else MISSING
    return "" if found is MISSING else f"{key}={_typed(found)}"


MISSING = object()


def _value(key: str, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    """What a composition has at a dotted key; MISSING where it has none, or no plain value."""
    try:
        node: Any = compose_values(overrides, config_dirs).values
    except ConfigError:
        return MISSING
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return MISSING
        node = node[part]
    return MISSING if isinstance(node, (dict, list)) else node


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return hydra_text(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
