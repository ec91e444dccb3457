"""Ends a rank whose neighbour on the node has died, where no collective of its own notices.

Now and then gloo goes on waiting for a peer that was killed. torchrun asks the others to end, which
they take for a wish to save and end after the step; it kills them half a minute later.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher.plan.run_files import RunFiles
from launcher.runtime.process import Place, leave_reason
from launcher.runtime.pulse import Pulse

_LOOK_S = 2.0
_GRACE_S = 5.0
"""Who has noticed ends by itself, with words of its own."""


def count_children() -> int | None:
    """Processes that torchrun has on this node; None: the system does not say."""
    try:
        tasks = list(Path(f"/proc/{os.getppid()}/task").iterdir())
        return sum(len((task / "children").read_text().split()) for task in tasks)
    except OSError:
        return None


class Neighbours:
    """Of one rank; a thread of its own from `start` on."""

    def __init__(
        self,
        files: RunFiles,
        place: Place,
        pulse: Pulse,
        count: Callable[[], int | None] = count_children,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._place, self._pulse = files, place, pulse
        self._count, self._clock = count, clock
        self._were_all = False
        self._missing_since: float | None = None

    def start(self) -> None:
        """Begin to look; one process alone has nobody to look after."""
        if self._place.local_world_size > 1:
            threading.Thread(target=self._watch, name="neighbours", daemon=True).start()

    def have_gone(self) -> bool:
        """Whether one has been missing for long. All are done before any of them leaves, so that
        one that goes earlier has failed.
        """
        count = self._count()
        if count is None or self._pulse.last.what == "leaving":
            return False
        if count >= self._place.local_world_size:
            self._were_all, self._missing_since = True, None
            return False
        if not self._were_all:  # they are being started
            return False
        now = self._clock()
        if self._missing_since is None:
            self._missing_since = now
        return now - self._missing_since >= _GRACE_S

    def _watch(self) -> None:
        while not self.have_gone():
            time.sleep(_LOOK_S)
        error = "a rank of this node has ended, and nothing here has noticed"
        print(error, file=sys.stderr, flush=True)
        leave_reason(self._files, self._place, f"RunFailed: {error}", is_echo=True)
        os._exit(1)
