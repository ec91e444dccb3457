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

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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


MakeAction = Callable[[Kind, int], Action]
Order = Callable[[MakeAction, int, int, int], list[Action]]
"""The compute actions of one stage, from (action, stage, num_stages, num_microbatches)."""


def build_schedule(name: str, num_stages: int, num_microbatches: int) -> Schedule:
    """The schedule of this name, transfers included; any num_stages, num_microbatches >= 1."""
    assert num_stages >= 1, f"num_stages={num_stages}"
    assert num_microbatches >= 1, f"num_microbatches={num_microbatches}"
    action = cache(Action)  # all stages share equal actions: a third of the time and memory
    orders = build_orders(name, num_stages, num_microbatches, action)
    ranks = tuple(
        _add_transfers(order, action, stage, num_stages) for stage, order in enumerate(orders)
    )
    return Schedule(
        name=name, num_stages=num_stages, num_microbatches=num_microbatches, ranks=ranks
    )


def build_orders(
    name: str, num_stages: int, num_microbatches: int, action: MakeAction | None = None
) -> list[list[Action]]:
    """The compute actions alone, stage by stage."""
    action = action or cache(Action)
    order = SCHEDULES[name]
    return [order(action, stage, num_stages, num_microbatches) for stage in range(num_stages)]


def gpipe(action: MakeAction, stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """All forwards, then all backwards in the same order (GPipe, arXiv:1811.06965, sec. 2.3)."""
    microbatches = range(num_microbatches)
    return [action("F", i) for i in microbatches] + [action("B", i) for i in microbatches]


def one_f_one_b(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int
) -> list[Action]:
    """Warm up, then one forward and one backward in turn, then the backwards that are left.

    PipeDream-Flush (arXiv:2006.09503, sec. 2.2): stage s never holds more than
    min(num_stages - s, num_microbatches) microbatches.
    """
    num_warmup = min(num_stages - stage - 1, num_microbatches)
    num_steady = num_microbatches - num_warmup
    actions = [action("F", i) for i in range(num_warmup)]
    for i in range(num_steady):
        actions += [action("F", num_warmup + i), action("B", i)]
    return actions + [action("B", i) for i in range(num_steady, num_microbatches)]


SCHEDULES: dict[str, Order] = {"gpipe": gpipe, "1f1b": one_f_one_b}


def _add_transfers(
    compute: list[Action], action: MakeAction, stage: int, num_stages: int
) -> tuple[Action, ...]:
    """Put a receive one compute action ahead of its user, and a send right behind its producer."""
    has_previous, has_next = stage > 0, stage < num_stages - 1
    receives: dict[str, Kind] = {}
    sends: dict[str, Kind] = {}
    if has_previous:
        receives["F"], sends["B"] = "recv_forward", "send_backward"
    if has_next:
        receives["B"], sends["F"] = "recv_backward", "send_forward"
    actions: list[Action] = []

    def post(user: Action) -> None:
        if user.kind in receives:
            actions.append(action(receives[user.kind], user.microbatch))

    post(compute[0])
    for position, current in enumerate(compute):
        if position + 1 < len(compute):
            post(compute[position + 1])
        actions.append(current)
        if current.kind in sends:
            actions.append(action(sends[current.kind], current.microbatch))
    return tuple(actions)
