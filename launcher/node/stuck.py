"""Ends workers that outlive a hang.

Ranks that hang dump their stacks and end (runtime/watchdog.py). A rank that is stopped cannot, and
torchrun would wait half a minute for it before it kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from launcher.node.processes import is_running, workers_of
from launcher.plan.patience import others_s

_MARGIN_S = 3.0


class StuckWorkers:
    """Looks for the stacks of ranks; ends this node's workers of that time when theirs is over."""

    def __init__(
        self,
        folder: Path,
        module: str,
        hang_timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` is where ranks put their stacks; `module` is what the workers run."""
        self._folder, self._module, self._clock = folder, module, clock
        self._patience_s = others_s(hang_timeout_s or 0.0) + _MARGIN_S
        self._seen = self._files()
        self._doomed: dict[int, float] = {}

    def look(self, torchrun: int) -> bool:
        """Whether a hang is new; `torchrun` is the process whose workers are meant."""
        files, now = self._files(), self._clock()
        is_new = bool(files - self._seen)
        self._seen = files
        if is_new:
            for pid in workers_of(torchrun, self._module):
                self._doomed.setdefault(pid, now + self._patience_s)
        for pid, when in list(self._doomed.items()):
            if not is_running(pid):
                del self._doomed[pid]
            elif now >= when:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        return is_new

    def _files(self) -> set[tuple[str, int]]:
        found = set()
        for path in self._folder.glob("hang_*.txt"):
            with contextlib.suppress(OSError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found
