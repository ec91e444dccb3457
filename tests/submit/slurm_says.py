"""Slurm's programs, replaced by scripts that answer as recorded from Slurm 22.05."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified"
NO_ACCOUNTING = "Slurm accounting storage is disabled"
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Slurm:
    """What squeue, sacct and scancel answer."""

    UNKNOWN = UNKNOWN_JOB

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.unknown()
        self.program("sacct", error=NO_ACCOUNTING)
        self.program("scancel")

    def program(self, name: str, text: str = "", error: str = "", then: str = "") -> None:
        """What a program prints; with an error it exits with 1. `then` is done after it."""
        script = self.folder / name
        lines = ["#!/bin/bash", f'echo "$@" >> {shlex.quote(str(self.folder / name))}.calls']
        lines += [f"printf '%s\\n' {shlex.quote(text)}"] if text else []
        lines += [f"echo {shlex.quote(error)} >&2", "exit 1"] if error else []
        script.write_text("\n".join([*lines, then, ""]))
        script.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """Arguments of every call so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def unknown(self) -> None:
        """The job has left squeue."""
        self.program("squeue", error=UNKNOWN_JOB)

    def queued(self, *lines: str) -> None:
        """squeue has these jobs."""
        self.program("squeue", text="\n".join(lines))


def line(
    job: str = "7",
    state: str = "PENDING",
    reason: str = "Resources",
    start: str = "N/A",
    nodes: str = "",
    left: str = "5:00",
    task: str = "N/A",
    script: str = "/runs/x/job.sbatch",
) -> str:
    """A line of squeue in the format that we ask for."""
    return f"{job}|{task}|{job}|{state}|{reason}|{start}|NONE|{left}|alice|{nodes}|{script}"
