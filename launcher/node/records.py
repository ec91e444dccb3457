"""Small JSON records in a run directory: whole or not at all, and read without surprises."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.plan.run_files import RunFiles, StartFiles


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a job."""

    job_id: str
    restart: int
    """How often the queue had started the job again."""
    files: StartFiles

    @property
    def nodes(self) -> dict[str, Any]:
        """nodes.json; empty where it is not there."""
        return read_record(self.files.nodes) or {}

    @property
    def end(self) -> dict[str, Any] | None:
        """end.json; None where the start goes on or was cut off."""
        return read_record(self.files.end)


def write_record(path: Path, document: dict[str, Any]) -> None:
    """A name only ever points at a whole record; several nodes may write the same one."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(document, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_record(path: Path) -> dict[str, Any] | None:
    """The record; None where there is none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def list_starts(files: RunFiles) -> list[Start]:
    """Every start of the run's jobs, oldest first."""
    starts = []
    with contextlib.suppress(OSError):
        for folder in files.starts.iterdir():
            job_id, _, restart = folder.name.rpartition(".")
            if job_id and restart.isdecimal():
                place = StartFiles(root=folder)
                starts.append(Start(job_id=job_id, restart=int(restart), files=place))
    return sorted(starts, key=_order)


def _order(start: Start) -> tuple[float, int, int]:
    """By the clock, and where that is missing by number: ids of jobs grow."""
    digits = "".join(letter for letter in start.job_id if letter.isdecimal())
    began = start.nodes.get("started_at")
    moment = float(began) if isinstance(began, (int, float)) else float("inf")
    return (moment, int(digits or 0), start.restart)
