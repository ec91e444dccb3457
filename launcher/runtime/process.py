"""One worker process: its place in the job, its log, its end."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from launcher.checkpoint.lock import Held, take
from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OTHER_JOB_ENDS_S = 60.0
# How torch's backends say that a peer has gone: gloo's and NCCL's words, and the store's.
_ECHOES = (
    "gloo/transport",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "application timeout caused pair closure",
    "nccl communicator was aborted",
    "socket timeout",
    "timed out waiting",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where torchrun put this process; read from the environment here and nowhere else."""

    rank: int
    local_rank: int
    world_size: int
    node: str
    """Host name."""
    local_world_size: int = 1
    """Ranks on this node."""


def read_place() -> Place:
    """The variables that torchrun sets; one process alone needs none of them."""
    return Place(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        node=socket.gethostname(),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def end_with_parent() -> None:
    """Have the kernel kill this process when torchrun dies, so that no orphan holds a device."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It died before the kernel knew of our wish.
        os._exit(1)


def log_to(path: Path) -> None:
    """Send everything that this process prints, C libraries included, to its own log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def take_directory(files: RunFiles, place: Place) -> None:
    """Hold the run directory until this process ends, for all ranks; RunFailed where it is held.

    A job that was asked to end may still be saving: it is waited for.
    """
    if place.rank != 0:
        return
    try:
        take(files.job_lock, _OTHER_JOB_ENDS_S)
    except Held as held:
        raise RunFailed(f"{held} works in {files.root}; two jobs would mix their files") from held


def fail(files: RunFiles, place: Place, error: BaseException) -> NoReturn:
    """Leave the reason for the launcher and end at once.

    Python's ordinary exit would wait for communication threads whose peers may be waiting for us.
    """
    traceback.print_exception(error)
    lines = str(error).strip().splitlines() or [""]
    is_echo = any(words in str(error).lower() for words in _ECHOES)
    leave_reason(files, place, f"{type(error).__name__}: {lines[0]}", is_echo)
    leave(1)


def leave(code: int) -> NoReturn:
    """End at once, with nothing unsaid.

    An ordinary exit runs the destructors of compiled libraries, of which one now and then aborts a
    rank that has done its work (`terminate called without an active exception`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_reason(
    files: RunFiles, place: Place, error: str, is_echo: bool = False, stacks: Path | None = None
) -> None:
    """Write why this rank ends; `stacks` is the file that has its stacks."""
    document = {
        "rank": place.rank,
        "node": place.node,
        "error": error,
        "time": time.time(),
        "is_echo": is_echo,
    }
    if stacks is not None:
        document["stacks"] = os.path.relpath(stacks.parent, files.root)
    target = files.rank_error(place.rank)
    partial = target.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(document))
        partial.replace(target)
    except OSError as full:
        print(f"the reason could not be written: {full}", file=sys.stderr)
