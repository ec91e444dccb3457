"""Which combinations are legal: the tables of rules, and the checks made from them.

One row says everything: the key to blame, what must hold, why, and how to see whether it holds.
The findings, `launch rules`, the docs page and the tests are all generated from `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import Run
from launcher.errors import Finding


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table."""

    id: str
    """Stable; scripts rely on it."""
    field: str
    """Dotted key that is blamed and that the fix changes."""
    says: str
    """What must hold, in one line."""
    why: str
    """The reason, with its source."""
    broken: Callable[[Run], str | None]
    """The sentence that says what is wrong, or None where the rule holds or a value is open."""
    candidates: Callable[[Run], Iterable[Any]] = lambda run: ()
    """Values to try for `field`; those that pass every rule on `field` are the legal ones."""
    fix: str = ""
    """What to type where no single legal value of `field` mends it."""


def check_run(run: Run, rules: Iterable[Rule] | None = None) -> list[Finding]:
    """Every broken rule of a run as a finding; open (None) values are passed over."""
    table = tuple(rules if rules is not None else all_rules())
    return [_finding(rule, run, reason, table) for rule in table if (reason := rule.broken(run))]


def obeys_rules(run: Run, rules: Iterable[Rule] | None = None) -> bool:
    """Whether a run breaks no rule; cheaper than `check_run`, for searching layouts."""
    return not any(rule.broken(run) for rule in (rules if rules is not None else all_rules()))


def all_rules() -> tuple[Rule, ...]:
    """The table, in the order in which findings are reported."""
    from launcher.config.rules_layout import LAYOUT_RULES
    from launcher.config.rules_model import MODEL_RULES
    from launcher.config.rules_run import RUN_RULES

    return MODEL_RULES + LAYOUT_RULES + RUN_RULES


def get_value(run: Run, field: str) -> Any:
    """The value behind a dotted key."""
    value: Any = run
    for part in field.split("."):
        value = getattr(value, part)
    return value


def with_value(run: Run, field: str, value: Any) -> Run:
    """A copy of the run with one dotted key changed, unvalidated."""
    group, _, key = field.partition(".")
    if not key:
        return run.model_copy(update={group: value})
    record = getattr(run, group).model_copy(update={key: value})
    return run.model_copy(update={group: record})


def _finding(rule: Rule, run: Run, reason: str, table: tuple[Rule, ...]) -> Finding:
    value = get_value(run, rule.field)
    legal = _legal_values(rule, run, table)
    fix = rule.fix or (f"{rule.field}={_as_typed(_nearest(value, legal))}" if legal else "")
    shown = list(value) if isinstance(value, tuple) else value
    return Finding(
        field=rule.field,
        value=shown,
        rule=rule.id,
        reason=reason,
        legal=[_as_typed(candidate) for candidate in legal],
        fix=fix,
    )


def _legal_values(rule: Rule, run: Run, table: tuple[Rule, ...]) -> list[Any]:
    """Candidates that break none of the rules that blame the same field."""
    related = [other for other in table if other.field == rule.field]
    return [
        candidate
        for candidate in rule.candidates(run)
        if not any(other.broken(with_value(run, rule.field, candidate)) for other in related)
    ]


def _nearest(value: Any, legal: list[Any]) -> Any:
    """The legal value closest to what was given (by ratio); the first where there is no distance."""
    numbers = (int, float)
    if isinstance(value, numbers) and not isinstance(value, bool) and value > 0:
        sized = [candidate for candidate in legal if isinstance(candidate, numbers) and candidate]
        if sized:
            return min(sized, key=lambda candidate: max(candidate / value, value / candidate))
    return legal[0]


def _as_typed(value: Any) -> Any:
    """As Hydra's command line wants it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(str(part) for part in value) + "]"
    return value


def divisors(number: int, limit: int | None = None) -> list[int]:
    """All divisors up to `limit`, ascending.  divisors(12, 6) -> [1, 2, 3, 4, 6]"""
    top = number if limit is None else min(number, limit)
    return [candidate for candidate in range(1, top + 1) if number % candidate == 0]
