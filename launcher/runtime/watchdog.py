"""Ends a rank that hangs: its stacks go to a file, so that the job can start again.

Every rank has a watchdog. When one rank is stuck, all others soon wait for it in a collective and
take no step either, so every one of them dumps its stacks; the one that is stopped from outside, or
stuck in compiled code that holds Python's lock, is known by having none.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher.plan.patience import others_s
from launcher.plan.run_files import RunFiles
from launcher.runtime.process import Place, leave_reason
from launcher.runtime.pulse import Pulse

_LOOKS = 20
"""So often a watchdog looks within the timeout, but at least every few seconds."""
_LOOK_S = (0.05, 5.0)
_ASLEEP = 10.0
"""A watchdog that missed so many looks did not run: the process was suspended, not stuck."""
_DISK_S = 30.0
"""The disk may be what hangs."""
EXIT_CODE = 1


class Watchdog:
    """Of one rank; a thread of its own from `start` on."""

    def __init__(
        self,
        files: RunFiles,
        place: Place,
        pulse: Pulse,
        stacks: Path,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """`stacks` is the file for the stacks; `end` ends the process."""
        self._files, self._place, self._pulse, self._end = files, place, pulse, end
        self._stacks = stacks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.has_fired = False

    def start(self) -> None:
        """Begin to look; where the run has no timeout, nothing ever happens."""
        for path in (self._stacks, self._files.rank_error(self._place.rank)):
            put_aside(path)
        if self._pulse.timeout_s is not None:
            self._thread.start()

    def stop(self) -> None:
        """The rank is done."""
        self._stopped.set()

    def wait_if_fired(self) -> None:
        """For a training thread that fails because others were ended: the hang was first."""
        if self.has_fired:
            self._thread.join()

    def _watch(self) -> None:
        timeout_s = self._pulse.timeout_s
        assert timeout_s is not None
        every_s = min(max(timeout_s / _LOOKS, _LOOK_S[0]), _LOOK_S[1])
        looked_at = time.monotonic()
        while not self._stopped.wait(every_s):
            now = time.monotonic()
            if now - looked_at > _ASLEEP * every_s:
                self._pulse.forgive()
            looked_at = now
            if self._pulse.is_overdue():
                self.fire()
                return

    def fire(self) -> None:
        """Dump, give the other ranks time to do the same, and end the process."""
        self.has_fired = True
        writer = threading.Thread(target=self._dump, name="stacks", daemon=True)
        writer.start()
        writer.join(_DISK_S)
        self._wait_for_others()
        self._end(EXIT_CODE)

    def _dump(self) -> None:
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        error = self._words()
        partial = self._stacks.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(self._head())
            stream.flush()
            faulthandler.dump_traceback(file=stream, all_threads=True)
        partial.replace(self._stacks)
        leave_reason(self._files, self._place, error, stacks=self._stacks)
        print(error, f"\nstacks: {self._stacks}", file=sys.stderr, flush=True)

    def _head(self) -> str:
        place, pulse = self._place, self._pulse
        return (
            f"rank: {place.rank}\nnode: {place.node}\nsteps: {pulse.step}\n"
            f"doing: {pulse.last.what}\nsilent: {pulse.silent_s():.1f} s\n"
            f"thread: 0x{threading.main_thread().ident or 0:016x}\n\n"
        )

    def _words(self) -> str:
        last, step = self._pulse.last, self._pulse.step
        after = f"after step {step}" if step else "before the first step"
        doing = "" if last.what == "training" else f" ({last.what})"
        return (
            f"Hung: no step within {last.limit_s:g} s {after}{doing}; "
            f"launch.hang_timeout_s={self._pulse.timeout_s:g}"
        )

    def _wait_for_others(self) -> None:
        """Ended processes end their neighbours, which then could not say where they were."""
        timeout_s = self._pulse.timeout_s
        deadline = time.monotonic() + others_s(timeout_s or 0.0)
        while time.monotonic() < deadline:
            if len(list(self._stacks.parent.glob("hang_*.txt"))) >= self._place.world_size:
                return
            time.sleep(0.1)


def put_aside(path: Path) -> None:
    """What workers of an earlier round have left stays readable, and is not taken for new."""
    try:
        path.rename(path.with_name(f"earlier_{int(path.stat().st_mtime)}_{path.name}"))
    except OSError:
        return
