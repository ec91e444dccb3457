"""What rendering must know of the place where a command is typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The submitting machine."""

    python: str
    """Interpreter that has the launcher installed."""
    cores: int
    """Cores of this machine."""
    package: Path
    """Folder of the launcher's own code."""
    code: str
    """Which code was planned, in a few words."""
    slurm_templates: Mapping[str, str]
    """Texts of slurm/*.sbatch: bare, pyxis, apptainer, array."""
