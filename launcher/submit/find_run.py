"""Finds the run directory that a command line names."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.config.spelling import closest
from launcher.errors import ConfigError, Finding
from launcher.plan.run_files import RunFiles

_RUNS = Path("runs")
_SHOWN = 5


def find_run(word: str) -> RunFiles:
    """Files of the run: a run directory, or the name of one under runs/; ConfigError otherwise."""
    given = Path(os.path.expanduser(word))
    for root in (given, _RUNS / word):
        # What a resume that was cut off had put aside counts, too.
        files = RunFiles(root=root.absolute())
        if os.path.lexists(files.run) or os.path.isdir(files.attempts):
            return files
    raise ConfigError([_no_such_run(word, given)])


def _no_such_run(word: str, given: Path) -> Finding:
    newest = _newest_runs()
    near = closest(Path(word).name, newest)
    if os.path.isdir(given):
        reason = "no run directory: it has no run.yaml"
    else:
        reason = "neither a run directory nor a name under runs/"
    return Finding(
        field="RUN",
        value=word,
        rule="no-such-run",
        reason=reason,
        legal=newest[:_SHOWN],
        fix=str(_RUNS / (near or newest)[0]) if newest else "",
    )


def _newest_runs() -> list[str]:
    """Names of the runs under runs/, newest first."""
    try:
        found = [path.parent for path in _RUNS.glob("*/run.yaml")]
        return [path.name for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]
    except OSError:
        return []
