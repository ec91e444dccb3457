"""Orders for two chunks per stage, placed as a V: down through the stages, and back up.

The first stage has the model's first and last part, so every stage holds equally much, and the
loss is where the data is.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Literal

from launcher.plan.schedule_orders import MakeAction, in_turn
from launcher.plan.schedule_records import Action

Step = Literal["F", "B", "W"]
STEPS: dict[str, tuple[Step, int]] = {
    "F0": ("F", 0), "B0": ("B", 0), "W0": ("W", 0),
    "F1": ("F", 1), "B1": ("B", 1), "W1": ("W", 1),
}  # fmt: skip
"""Kind and chunk of every step of a pattern."""


def zb_v(action: MakeAction, stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """ZB-V (arXiv:2401.10241, sec. 6): no bubble where F, B and W take equally long.

    Every stage holds at most 2 x num_stages parts: as much as 1F1B's first stage.
    """
    # The order is that of enough microbatches to fill the pipeline; what there is not, is left out.
    enough = max(2 * num_stages - 1, num_microbatches)
    tape = _Tape(action, enough)
    tape.add("F0", times=2 * (num_stages - stage) - 1)
    tape.add("F1 F0", times=stage)
    tape.add("F1 B1 W1", times=num_stages - stage)
    tape.add("F0 B0 W0 F1 B1 W1", times=enough - tape.counts["F0"])
    tape.add("B0 W0 F1 B1 W1", times=enough - tape.counts["F1"])
    tape.add("B0 B1", times=stage)
    tape.add("B0 W0", times=num_stages - stage)
    tape.add("W1", times=tape.counts["B1"] - tape.counts["W1"])
    tape.add("W0", times=tape.counts["B0"] - tape.counts["W0"])
    if enough == num_microbatches:
        return tape.actions
    return [each for each in tape.actions if each.microbatch < num_microbatches]


def dualpipev(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int
) -> list[Action]:
    """DualPipeV: the V-shaped half of DualPipe (arXiv:2412.19437, sec. 3.2.1).

    In the middle, a forward of one chunk always stands beside a whole backward of the other, so
    that the communication of the one can hide behind the other. Needs 2 x num_stages microbatches.
    """
    behind = num_stages - 1 - stage
    tape = _Tape(action, num_microbatches)
    tape.add("F0", times=2 * behind)
    tape.add("F0 F1", times=stage + 1)
    tape.add("B1 W1 F1", times=behind)
    tape.add("F0 B1 W1 F1 B0 W0", times=num_microbatches - 2 * num_stages + stage + 1)
    tape.add("B1 W1 F1 B0 W0", times=behind)
    # The second half of these, rounded up, puts its weight gradients off.
    for position in range(2 * (stage + 1)):
        step = "B0" if position % 2 else "B1"
        tape.add(step if position > stage else f"{step} W{step[1]}")
    for _ in range(behind):
        tape.add_oldest_weight()
        tape.add("B0")
    while tape.has_late:
        tape.add_oldest_weight()
    return tape.actions


class _Tape:
    """Actions of one stage, written by patterns such as `F0 B1`: kind and chunk."""

    def __init__(self, action: MakeAction, num_microbatches: int) -> None:
        self.action, self.num_microbatches = action, num_microbatches
        self.actions: list[Action] = []
        self.counts: Counter[str] = Counter()
        self._returned: list[int] = []
        self._weighed = [0, 0]
        self._place = 0

    def add(self, pattern: str, times: int = 1) -> None:
        """Each step of the pattern, one of a kind, takes the next microbatch of its kind and chunk,
        and all of them again as often as it is said.
        """
        steps = pattern.split() if times > 0 else ()
        rows = []
        for step in steps:
            start = self.counts[step]
            self.counts[step] = start + times
            row = _row(self.action, *STEPS[step], max(self.num_microbatches, start + times))
            rows.append(row[start : start + times])
        self.actions += in_turn(*rows)
        self._returned += [STEPS[step][1] for step in steps if step[0] == "B"] * times

    @property
    def has_late(self) -> bool:
        """Whether weight gradients are still to come."""
        return self.counts["W0"] + self.counts["W1"] < len(self._returned)

    def add_oldest_weight(self) -> None:
        """The weight gradient that has waited longest."""
        chunk = self._returned[self._place]
        while self._weighed[chunk] < self.counts[f"W{chunk}"]:
            self._weighed[chunk] += 1
            self._place += 1
            chunk = self._returned[self._place]
        self.add(f"W{chunk}")


@lru_cache(maxsize=12)
def _row(action: MakeAction, kind: Step, chunk: int, count: int) -> list[Action]:
    """One after the other; the same on all stages, which leave the list as it is."""
    return [action(kind, microbatch, chunk) for microbatch in range(count)]
