"""Ends a tree of processes for good, within a bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def end_tree(process: subprocess.Popen[bytes], patience_s: float = 1.5) -> None:
    """Ask the process and all its descendants to end; kill what is left after `patience_s`.

    torchrun starts its workers in sessions of their own, so a signal to one process group would
    miss them: descendants are found by their parents.
    """
    if process.poll() is not None:
        return  # Its workers follow it by themselves (worker.py asks the kernel for that).
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        _signal(pid, signal.SIGTERM)
    _wait(process, family, patience_s)
    family = list({*family, *descendants(process.pid)})
    for pid in family:
        _signal(pid, signal.SIGKILL)
    # A killed process takes a while to give its memory back.
    _wait(process, family, 2.0)


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, as /proc tells; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The command name, in parentheses, may contain spaces; the parent's id follows it.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process; empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def workers_of(torchrun: int, module: str) -> list[int]:
    """Processes that a torchrun has started to run a module."""
    found = []
    for pid in descendants(torchrun):
        words = words_of(pid)
        if module in words and "torch.distributed.run" not in words:
            found.append(pid)
    return found


def _wait(process: subprocess.Popen[bytes], family: list[int], patience_s: float) -> None:
    """Until none of the family is left, `process` reaped, or patience ends."""
    deadline = time.monotonic() + patience_s
    while process.poll() is None or any(is_running(pid) for pid in family):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
