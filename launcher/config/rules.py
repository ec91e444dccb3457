"""Which combinations are legal: the table of rules, and the checks made from it.

One row says everything: the key to blame, what must hold, why, and how to see whether it holds.
The findings, `launch rules`, the docs page and the tests are all generated from `RULES`.
"""

from __future__ import annotations

from operator import methodcaller
from typing import Any

from launcher.config.quoting import typed_value
from launcher.config.rule import Rule
from launcher.config.rules_context import CONTEXT_RULES
from launcher.config.rules_data import DATA_RULES
from launcher.config.rules_engine import ENGINE_RULES
from launcher.config.rules_experts import EXPERT_RULES
from launcher.config.rules_hosts import HOST_RULES
from launcher.config.rules_launch import LAUNCH_RULES
from launcher.config.rules_layout import LAYOUT_RULES
from launcher.config.rules_model import MODEL_RULES
from launcher.config.rules_pipeline import PIPELINE_RULES
from launcher.config.rules_run import RUN_RULES
from launcher.config.schema import Run
from launcher.errors import Finding

RULES: tuple[Rule, ...] = (
    *MODEL_RULES,
    *LAYOUT_RULES,
    *EXPERT_RULES,
    *CONTEXT_RULES,
    *ENGINE_RULES,
    *PIPELINE_RULES,
    *DATA_RULES,
    *RUN_RULES,
    *LAUNCH_RULES,
    *HOST_RULES,
)
"""Every rule, in the order in which findings are reported."""


def check_run(run: Run, rules: tuple[Rule, ...] = RULES) -> list[Finding]:
    """Every broken rule of a run as a finding; open (None) values are passed over."""
    return [finding for rule in rules if (finding := judge(rule, run, rules))]


def judge(rule: Rule, run: Run, rules: tuple[Rule, ...] = RULES) -> Finding | None:
    """What one rule says of a run, with the values that would be legal under all of `rules`."""
    reason = rule.broken(run)
    return _finding(rule, run, reason, rules) if reason else None


def obeys_rules(run: Run, rules: tuple[Rule, ...] = RULES) -> bool:
    """Whether a run breaks no rule; cheaper than `check_run`, for searching layouts."""
    return not any(map(methodcaller("broken", run), rules))


def get_value(run: Run, field: str) -> Any:
    """The value behind a dotted key."""
    value: Any = run
    for part in field.split("."):
        value = getattr(value, part)
    return value


def with_value(run: Run, field: str, value: Any) -> Run:
    """A copy of the run with one dotted key changed, unvalidated."""
    changed: Run = _changed(run, field, value)
    return changed


def _changed(record: Any, field: str, value: Any) -> Any:
    name, _, inside = field.partition(".")
    new = _changed(getattr(record, name), inside, value) if inside else value
    return record.model_copy(update={name: new})


def _finding(rule: Rule, run: Run, reason: str, table: tuple[Rule, ...]) -> Finding:
    value = get_value(run, rule.field)
    legal = _legal_values(rule, run, table)
    fix = rule.fix if isinstance(rule.fix, str) else rule.fix(run)
    if not fix and legal:
        fix = f"{rule.field}={typed_value(_nearest(value, legal))}"
    return Finding(
        field=rule.field,
        value=None if value is None else typed_value(value),
        rule=rule.id,
        reason=reason,
        legal=[typed_value(candidate) for candidate in legal],
        fix=fix,
    )


def _legal_values(rule: Rule, run: Run, table: tuple[Rule, ...]) -> list[Any]:
    """Candidates that mend the rule and its field; those that break nothing else, if any."""
    held = [other for other in table if other.field != rule.field and not other.broken(run)]
    mending, harmless = [], []
    for candidate in rule.candidates(run):
        changed = with_value(run, rule.field, candidate)
        if any(other.broken(changed) for other in table if other.field == rule.field):
            continue
        mending.append(candidate)
        if not any(other.broken(changed) for other in held):
            harmless.append(candidate)
    legal = harmless or mending
    return sorted(set(legal)) if all(_is_number(candidate) for candidate in legal) else legal


def _nearest(value: Any, legal: list[Any]) -> Any:
    """The legal number nearest to what was given, the smaller of two; else the first.

    _nearest(6, [4, 8]) -> 4;  _nearest(30, [16, 32]) -> 32
    """
    if _is_number(value) and all(_is_number(candidate) for candidate in legal):
        return min(legal, key=lambda number: (abs(number - value), number))
    return legal[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
