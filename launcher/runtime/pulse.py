"""What a rank did last, and when: one stamp per step, from which a watchdog sees that it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from launcher.plan.patience import first_step_s

SAVING_S = 3600.0
"""A save waits for the one before, whose ranks wait for each other: twice the board's patience."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The last sign of life."""

    at: float
    """By the pulse's clock, in seconds."""
    what: str
    """What the rank began then."""
    limit_s: float | None
    """Seconds after which it counts as hung; None: never."""


class Pulse:
    """Stamped by the training thread, read by the watchdog's."""

    def __init__(
        self, hang_timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Without a timeout nothing ever hangs."""
        self._timeout_s, self._clock = hang_timeout_s, clock
        self._known: set[str] = set()
        self.step = 0
        """Steps of the run that are done, as far as this rank knows."""
        self.last = self._sign("starting")

    @property
    def timeout_s(self) -> float | None:
        """launch.hang_timeout_s."""
        return self._timeout_s

    def begin(self, what: str) -> None:
        """The next thing begins; what this process has not done before may take longer."""
        self.last = self._sign(what)

    def step_done(self, num_steps: int) -> None:
        """So many steps of the run are done, and the next one begins."""
        self.step = num_steps
        self._known.add("training")
        self.last = self._sign("training")

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, a slow disk is waited for."""
        before = self.last
        if self._timeout_s is not None:
            limit_s = max(self._timeout_s, SAVING_S)
            self.last = Sign(at=self._clock(), what="saving", limit_s=limit_s)
        yield
        self.begin(before.what)

    def done(self, what: str) -> None:
        """Part of something is done: a batch of a validation, say."""
        self._known.add(what)
        self.last = self._sign(what)

    def forgive(self) -> None:
        """Start the clock anew: this process was not running."""
        last = self.last
        self.last = Sign(at=self._clock(), what=last.what, limit_s=last.limit_s)

    def silent_s(self) -> float:
        """Seconds since the last sign."""
        return self._clock() - self.last.at

    def is_overdue(self) -> bool:
        """Whether the last sign is older than it may be."""
        limit_s = self.last.limit_s
        return limit_s is not None and self.silent_s() > limit_s

    def _sign(self, what: str) -> Sign:
        limit_s = self._timeout_s
        if limit_s is not None and what not in self._known:
            limit_s = first_step_s(limit_s)
        return Sign(at=self._clock(), what=what, limit_s=limit_s)
