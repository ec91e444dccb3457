"""The plan of a run that continues under overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.config.load import load_resumed
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.build import build_plan
from launcher.plan.records import Plan

_MICRO = "train.micro_batch_size"


def plan_resumed(frozen: Run, overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Plan:
    """Check and plan the frozen run under overrides.

    The microbatch size stays while it divides what dp leaves of the global batch; where it does
    not, it is solved again. Raises ConfigError with every finding.
    """
    try:
        return _plan(frozen, overrides, config_dirs, frozenset())
    except ConfigError as error:
        if any(finding.rule != "batch-triangle" for finding in error.findings):
            raise
        try:
            return _plan(frozen, overrides, config_dirs, frozenset({_MICRO}))
        except ConfigError:
            raise error from None


def _plan(
    frozen: Run, overrides: Sequence[str], config_dirs: Sequence[Path], also_open: frozenset[str]
) -> Plan:
    loaded = load_resumed(frozen, overrides, config_dirs, also_open=also_open)
    answer = build_plan(loaded.run)
    return replace(answer, decisions=(*loaded.decisions, *answer.decisions))
