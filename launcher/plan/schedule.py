"""In which order each pipeline stage works: schedules as data, read by plan and run alike.

Contract of the communication actions:
- a `recv_*` action posts a non-blocking receive; the compute action of the same microbatch waits
  for it. Receives are posted one compute action early, so that the transfer hides behind it;
- a `send_*` action starts a non-blocking send of what the compute action before it produced;
- each direction between two neighbours is one first-in-first-out channel of its own. A transport
  that runs the transfers of a pair strictly in the order of their posting (one NCCL communicator
  does) needs one communicator per direction: a stage posts the receive of a gradient before it
  sends the activation that its neighbour's gradient waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["F", "B", "W", "send_forward", "recv_forward", "send_backward", "recv_backward"]
COMPUTE: tuple[Kind, ...] = ("F", "B", "W")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a stage does."""

    kind: Kind
    """F forward, B backward, W weight gradient where it is apart from B; or a transfer."""
    microbatch: int
    """Which microbatch, from 0."""
    chunk: int = 0
    """Which model chunk of the stage (always 0 without interleaving)."""

    def __str__(self) -> str:
        """`F3`, `send_forward(3)`."""
        return f"{self.kind}{self.microbatch}" if self.kind in COMPUTE else self._transfer()

    def _transfer(self) -> str:
        return f"{self.kind}({self.microbatch})"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every stage does in one step, in order."""

    name: str
    """Key of SCHEDULES."""
    num_stages: int
    num_microbatches: int
    ranks: tuple[tuple[Action, ...], ...]
    """Actions of stage s in ranks[s]."""


def build_schedule(name: str, num_stages: int, num_microbatches: int) -> Schedule:
    """The schedule of this name, transfers included; any num_stages, num_microbatches >= 1."""
    assert num_stages >= 1, f"num_stages={num_stages}"
    assert num_microbatches >= 1, f"num_microbatches={num_microbatches}"
    order = SCHEDULES[name]
    ranks = tuple(
        _add_transfers(order(stage, num_stages, num_microbatches), stage, num_stages)
        for stage in range(num_stages)
    )
    return Schedule(
        name=name, num_stages=num_stages, num_microbatches=num_microbatches, ranks=ranks
    )


def gpipe(stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """All forwards, then all backwards in the same order (GPipe, arXiv:1811.06965, sec. 2.3)."""
    microbatches = range(num_microbatches)
    return [Action("F", index) for index in microbatches] + [
        Action("B", index) for index in microbatches
    ]


def one_f_one_b(stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """Warm up, then one forward and one backward in turn, then the backwards that are left.

    PipeDream-Flush (arXiv:2006.09503, sec. 2.2): stage s never holds more than
    min(num_stages - s, num_microbatches) microbatches.
    """
    num_warmup = min(num_stages - stage - 1, num_microbatches)
    actions = [Action("F", index) for index in range(num_warmup)]
    for index in range(num_microbatches - num_warmup):
        actions += [Action("F", num_warmup + index), Action("B", index)]
    left = range(num_microbatches - num_warmup, num_microbatches)
    return actions + [Action("B", index) for index in left]


SCHEDULES: dict[str, Callable[[int, int, int], list[Action]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
}
"""Name -> order of the compute actions of one stage, from (stage, num_stages, num_microbatches)."""


def _add_transfers(compute: Sequence[Action], stage: int, num_stages: int) -> tuple[Action, ...]:
    """Put a receive one compute action ahead of its user, and a send right behind its producer."""
    has_previous, has_next = stage > 0, stage < num_stages - 1
    receives: list[list[Action]] = [[] for _ in range(len(compute) + 1)]
    for position, action in enumerate(compute):
        early = max(position - 1, 0)
        if action.kind == "F" and has_previous:
            receives[early].append(Action("recv_forward", action.microbatch, action.chunk))
        if action.kind == "B" and has_next:
            receives[early].append(Action("recv_backward", action.microbatch, action.chunk))
    actions: list[Action] = []
    for position, action in enumerate(compute):
        actions += receives[position]
        actions.append(action)
        if action.kind == "F" and has_next:
            actions.append(Action("send_forward", action.microbatch, action.chunk))
        if action.kind == "B" and has_previous:
            actions.append(Action("send_backward", action.microbatch, action.chunk))
    return tuple(actions)
