"""torchrun of one node: its command, its process, its workers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.node.processes import workers_of
from launcher.node.rendezvous import Endpoint

_JOIN_TIMEOUT_S = 900
"""So long a node waits for the others to meet it."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What torchrun starts."""

    module: str
    arguments: tuple[str, ...]
    nodes: int
    per_node: int
    max_restarts: int
    """By torchrun itself: all workers again, where every node is still there."""


def words(
    workers: Workers, endpoint: Endpoint, rendezvous_id: str, node: str, is_host: bool
) -> list[str]:
    """The words of the command on one node."""
    # is_host: a port that is taken fails at once; without it torchrun would try to join whoever
    # listens there.
    conf = f"is_host={int(is_host)},join_timeout={_JOIN_TIMEOUT_S}"
    return [
        sys.executable, "-m", "torch.distributed.run",
        f"--nnodes={workers.nodes}",
        f"--nproc-per-node={workers.per_node}",
        f"--rdzv-id={rendezvous_id}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint.host}:{endpoint.port}",
        f"--rdzv-conf={conf}",
        f"--local-addr={node}",
        f"--max-restarts={workers.max_restarts}",
        "--module", workers.module, *workers.arguments,
    ]  # fmt: skip


def start(command: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """torchrun, apart from the signals that the queue sends, and gone when this process is."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Else workers that torchrun starts again meet in the store of those before them, and try
        # the addresses of dead processes (github.com/pytorch/pytorch/issues/135712).
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        # The queue signals the group of its task: torchrun would give its workers half a minute.
        start_new_session=True,
        preexec_fn=_prepare() if sys.platform == "linux" else None,
    )


def ask_to_stop(process: int, module: str) -> None:
    """Have the workers of this torchrun save and end; those that are still starting ignore it."""
    for pid in workers_of(process, module):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGUSR1)


class Echo:
    """Copies to this program's output what was added to a log."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, path.stat().st_size if path.exists() else 0

    def copy(self) -> bytes:
        """What is new, also printed."""
        with contextlib.suppress(OSError), self._path.open("rb") as stream:
            stream.seek(self._offset)
            new = stream.read()
            self._offset += len(new)
            sys.stdout.buffer.write(new)
            sys.stdout.flush()
            return new
        return b""


def _prepare() -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def hook() -> None:
        # Workers inherit this until they listen; torchrun, which would die of it, must not hear it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It died before the kernel knew of our wish.
            os._exit(1)

    return hook
