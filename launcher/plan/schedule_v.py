"""Orders for two chunks per stage, placed as a V: down through the stages, and back up.

The first stage has the model's first and last part, so every stage holds equally much, and the
loss is where the data is.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

from launcher.plan.schedule_orders import MakeAction
from launcher.plan.schedule_records import Action

STEPS: dict[str, tuple[Literal["F", "B", "W"], int]] = {
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
    tape = _Tape(action)
    tape.add("F0", times=2 * (num_stages - stage) - 1)
    tape.add("F1 F0", times=stage)
    tape.add("F1 B1 W1", times=num_stages - stage)
    tape.add("F0 B0 W0 F1 B1 W1", times=enough - tape.counts["F0"])
    tape.add("B0 W0 F1 B1 W1", times=enough - tape.counts["F1"])
    tape.add("B0 B1", times=stage)
    tape.add("B0 W0", times=num_stages - stage)
    tape.add("W1", times=tape.counts["B1"] - tape.counts["W1"])
    tape.add("W0", times=tape.counts["B0"] - tape.counts["W0"])
    return [each for each in tape.actions if each.microbatch < num_microbatches]


def dualpipev(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int
) -> list[Action]:
    """DualPipeV: the V-shaped half of DualPipe (arXiv:2412.19437, sec. 3.2.1).

    In the middle, a forward of one chunk always stands beside a whole backward of the other, so
    that the communication of the one can hide behind the other. Needs 2 x num_stages microbatches.
    """
    behind = num_stages - 1 - stage
    tape = _Tape(action)
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
    while tape.late:
        tape.add_oldest_weight()
    return tape.actions


class _Tape:
    """Actions of one stage, written by patterns such as `F0 B1`: kind and chunk."""

    def __init__(self, action: MakeAction) -> None:
        self.action = action
        self.actions: list[Action] = []
        self.counts: Counter[str] = Counter()
        self.late: deque[tuple[int, int]] = deque()

    def add(self, pattern: str, times: int = 1) -> None:
        """Each step of the pattern takes the next microbatch of its kind and chunk."""
        steps = pattern.split()
        for _ in range(times):
            for step in steps:
                self._write(step)

    def add_oldest_weight(self) -> None:
        """The weight gradient that has waited longest."""
        _, chunk = self.late[0]
        self._write(f"W{chunk}")

    def _write(self, step: str) -> None:
        kind, chunk = STEPS[step]
        microbatch = self.counts[step]
        self.counts[step] = microbatch + 1
        self.actions.append(self.action(kind, microbatch, chunk))
        if kind == "B":
            self.late.append((microbatch, chunk))
        elif kind == "W":
            self.late.remove((microbatch, chunk))
