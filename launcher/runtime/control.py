"""What a run is asked to do from outside, agreed by all ranks between two steps.

Signals may reach one rank or all of them, at different steps; clocks differ. So every rank puts
what it has seen into one small sum over all ranks, which is begun after a step and read after the
next one: it is under way while the step computes, and nobody waits for it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Save and end. Schedulers send the one or the other some time before they kill."""
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What all ranks do after the current step."""

    stop: bool = False
    """Save where saving is on, and end."""
    save: bool = False
    """Save now: it was asked for, or its time has come."""


class Control:
    """Collects signals, requests and the clock of one rank; agrees with the others.

    `agree` is called after every step, on every rank.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int,
        world_size: int,
        request: Path | None = None,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`request` is the file that asks for a save; `every_s` the time between saves."""
        self._device, self._rank, self._world_size = device, rank, world_size
        self._request, self._every_s, self._clock = request, every_s, clock
        self._saved_at = self._looked_at = clock()
        self._stop = False
        self._pending: tuple[torch.Tensor, Any] | None = None

    def listen(self) -> None:
        """From now on signals ask for an orderly end instead of ending this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def agree(self, is_last: bool = False) -> Wish:
        """The wish that all ranks share; what is seen now counts after the next step.

        With `is_last` nothing more is begun.
        """
        wish = self._collect()
        if wish.save:
            self.saved()
            self._answer_request()
        if not is_last:
            self._begin()
        return wish

    def saved(self) -> None:
        """A save was begun, for whatever reason: the clock starts anew."""
        self._saved_at = self._clock()

    def _begin(self) -> None:
        seen = torch.tensor([int(self._stop), int(self._wants_save())], dtype=torch.int32)
        seen = seen.to(self._device)
        work = None
        if self._world_size > 1:
            work = dist.all_reduce(seen, op=dist.ReduceOp.MAX, async_op=True)
        self._pending = (seen, work)

    def _collect(self) -> Wish:
        if self._pending is None:
            return Wish()
        seen, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        stop, save = seen.tolist()
        return Wish(stop=bool(stop), save=bool(save))

    def _wants_save(self) -> bool:
        """Only one clock and one view of the file count: those of rank 0."""
        if self._rank != 0:
            return False
        now = self._clock()
        if self._every_s is not None and now - self._saved_at >= self._every_s:
            return True
        if self._request is None or now - self._looked_at < _LOOK_EVERY_S:
            return False
        self._looked_at = now
        return self._request.exists()

    def _answer_request(self) -> None:
        if self._rank == 0 and self._request is not None:
            self._request.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
