"""Judges what is left of a refused run, so that one typo does not hide the other mistakes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from launcher.config.rule import Rule
from launcher.config.rules import RULES, judge
from launcher.config.schema import Record, Run
from launcher.config.validate import record_in
from launcher.errors import Finding


def check_partial(values: Mapping[str, Any], refused: Collection[str]) -> list[Finding]:
    """Findings of every rule that reads none of the refused keys.

    Args:
        values: as composed; unknown keys among them are passed over.
        refused: dotted keys, or whole groups, whose value means nothing.

    """
    run = partial_run(values, refused)
    readable = tuple(rule for rule in RULES if _is_readable(rule, run))
    return [finding for rule in readable if (finding := _judge(rule, run, readable))]


def partial_run(values: Mapping[str, Any], refused: Collection[str]) -> Run:
    """A run without the refused keys: reading one of them raises AttributeError."""
    run: Run = _record(Run, values, frozenset(refused), "")
    return run


def check_readable(check: Callable[[Run], Iterable[Finding]], run: Run) -> list[Finding]:
    """What a check says of a part of a run; nothing where it reads a refused key."""
    try:
        return list(check(run))
    except AttributeError:
        return []


def _is_readable(rule: Rule, run: Run) -> bool:
    try:
        rule.broken(run)
    except AttributeError:
        return False  # It reads a refused key: what it would say is not known.
    return True


def _judge(rule: Rule, run: Run, rules: tuple[Rule, ...]) -> Finding | None:
    try:
        return judge(rule, run, rules)
    except AttributeError:  # Its advice would need a refused key.
        return judge(replace(rule, candidates=lambda run: (), fix=""), run, rules)


def _record(
    kind: type[Record], values: Mapping[str, Any], refused: frozenset[str], prefix: str
) -> Any:
    """A record without its refused fields: reading one of them raises AttributeError."""
    given: dict[str, Any] = {}
    absent = []
    for name, info in kind.model_fields.items():
        field = f"{prefix}{name}"
        inner, value = record_in(info.annotation), values.get(name)
        is_refused = field in refused or (
            inner is None and any(other.startswith(f"{field}.") for other in refused)
        )
        if is_refused or (name not in values and info.is_required()):
            absent.append(name)
        elif inner is not None and isinstance(value, Mapping):
            given[name] = _record(inner, value, refused, f"{field}.")
        elif name in values:
            given[name] = tuple(value) if isinstance(value, list) else value
    record = kind.model_construct(**given)
    for name in absent:
        record.__dict__.pop(name, None)
    return record
