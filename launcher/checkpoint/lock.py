"""One job, and one command that follows it, per run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock, as it said itself."""

    pid: int | None
    host: str
    since: str

    def __str__(self) -> str:
        """`process 123 on node-1 since 2026-01-31 12:00:00`."""
        if self.pid is None:
            return "a process that has not said which"
        return f"process {self.pid} on {self.host} since {self.since}"


class Held(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        super().__init__(str(holder))


@contextlib.contextmanager
def hold(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock while the block runs; Held where it is not free within `patience_s`.

    The kernel lets go of it when the process ends, however it ends: no lock is ever stale. Where a
    file system has no locks, the holder's process is looked for instead.
    """
    handle = _acquire(path, patience_s)
    try:
        yield
    finally:
        _release(handle)


def take(path: Path, patience_s: float = 0.0) -> None:
    """Hold the lock until this process ends; Held as above."""
    _acquire(path, patience_s)


def wait_until_free(path: Path, patience_s: float) -> None:
    """Wait for the holder to end; Held where it does not within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while (holder := holder_of(path)) is not None:
        if time.monotonic() >= deadline:
            raise Held(holder)
        time.sleep(_POLL_S)


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock now; None where it is free."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _try(handle, write=False) else _read(handle)
    finally:
        os.close(handle)


def _acquire(path: Path, patience_s: float) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience_s
    while not _try(handle, write=True):
        if time.monotonic() >= deadline:
            holder = _read(handle)
            os.close(handle)
            raise Held(holder)
        time.sleep(_POLL_S)
    return handle


def _try(handle: int, write: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if _is_running(_read(handle)):
            return False
    if write:
        document = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(document).encode(), 0)
    return True


def _release(handle: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
    os.close(handle)


def _read(handle: int) -> Holder:
    try:
        document: dict[str, Any] = json.loads(os.pread(handle, 4096, 0))
        return Holder(
            pid=int(document["pid"]), host=str(document["host"]), since=str(document["since"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(pid=None, host="", since="")


def _is_running(holder: Holder) -> bool:
    """Whether the holder is alive; on another host that cannot be known, and it is believed."""
    if holder.pid is None:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
