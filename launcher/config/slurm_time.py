"""Slurm's way of writing a duration."""

from __future__ import annotations

import re

# sbatch(1), --time: minutes | minutes:seconds | hours:minutes:seconds | days-hours[:minutes[:s]]
_SHAPES = (
    (re.compile(r"([0-9]+)"), (60,)),
    (re.compile(r"([0-9]+):([0-9]{2})"), (60, 1)),
    (re.compile(r"([0-9]+):([0-9]{2}):([0-9]{2})"), (3600, 60, 1)),
    (re.compile(r"([0-9]+)-([0-9]+)(?::([0-9]{2}))?(?::([0-9]{2}))?"), (86400, 3600, 60, 1)),
)


def slurm_seconds(text: str) -> int | None:
    """Seconds of a Slurm time; None for a text that is none.

    slurm_seconds("90") -> 5400; slurm_seconds("1-12") -> 129600; slurm_seconds("infinite") -> None
    """
    for shape, units in _SHAPES:
        if found := shape.fullmatch(text):
            parts = zip(found.groups(), units, strict=True)
            return sum(int(part) * unit for part, unit in parts if part is not None)
    return None
