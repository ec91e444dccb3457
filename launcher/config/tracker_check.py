"""Is the package of the run's tracker there? A run without its curves is found out too late."""

from __future__ import annotations

from importlib.util import find_spec

from launcher.config.schema import Run
from launcher.errors import Finding


def check_tracker(run: Run) -> list[Finding]:
    """For jobs of this machine's own interpreter; nothing is imported."""
    tracker = run.train.tracker
    if tracker is None or find_spec(tracker) is not None:
        return []
    return [
        Finding(
            field="train.tracker",
            value=tracker,
            rule="tracker-installed",
            reason=f"the package {tracker} is not installed beside launch",
            fix=f"pip install {tracker}",
        )
    ]


def check_tracker_here(run: Run) -> list[Finding]:
    """As `check_tracker`, where the run itself is of this machine."""
    return check_tracker(run) if run.hardware.name == "local" else []
