"""What a schedule is made of: actions, where the parts of the model sit, and how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

from launcher.frozen import frozen

Kind = Literal["F", "B", "W", "send_forward", "recv_forward", "send_backward", "recv_backward"]
COMPUTE: tuple[Kind, ...] = ("F", "B", "W")
Placement = Literal["loop", "v"]


class ScheduleError(ValueError):
    """The schedule cannot be built or cannot run; the message says where and why."""


class Action(NamedTuple):
    """One thing that a stage does."""

    kind: Kind
    """F forward; B backward, of the inputs only where the schedule has W actions; W weight
    gradients; or a transfer."""
    microbatch: int
    """Which microbatch, from 0."""
    chunk: int = 0
    """Which model chunk of the stage (always 0 with one chunk per stage)."""

    def __str__(self) -> str:
        """`F3`, `F3.1` (chunk 1), `send_forward(3)`."""
        index = f"{self.microbatch}.{self.chunk}" if self.chunk else f"{self.microbatch}"
        return f"{self.kind}{index}" if self.kind in COMPUTE else f"{self.kind}({index})"


Orders = list[list[Action]]
"""The compute actions of every stage."""


@frozen
class Chain:
    """Which part of the model sits where: part 0 has the embedding, the last one the head."""

    num_stages: int
    num_chunks: int = 1
    placement: Placement = "loop"
    """loop: every chunk goes from the first stage to the last; v: odd chunks go back."""

    @cached_property
    def num_parts(self) -> int:
        """Parts that the model is cut into."""
        return self.num_stages * self.num_chunks

    def part(self, stage: int, chunk: int) -> int:
        """Place of a stage's chunk in the model.

        Chain(num_stages=4, num_chunks=2, placement="v").part(3, 1) -> 4
        """
        turns_back = self.placement == "v" and chunk % 2 == 1
        return chunk * self.num_stages + (self.num_stages - 1 - stage if turns_back else stage)

    def parts_of(self, stage: int) -> list[int]:
        """Places of all chunks of a stage."""
        return [self.part(stage, chunk) for chunk in range(self.num_chunks)]

    @cached_property
    def parts_of_stages(self) -> tuple[list[int], ...]:
        """The same of every stage."""
        return tuple([self.parts_of(stage) for stage in range(self.num_stages)])

    def home(self, part: int) -> tuple[int, int]:
        """Stage and chunk of a part."""
        chunk, offset = divmod(part, self.num_stages)
        turns_back = self.placement == "v" and chunk % 2 == 1
        return (self.num_stages - 1 - offset if turns_back else offset), chunk

    def neighbour(self, stage: int, chunk: int, step: int) -> tuple[int, int] | None:
        """Home of the part before (step -1) or behind (+1) a stage's chunk; None at the ends."""
        part = self.part(stage, chunk) + step
        return self.home(part) if 0 <= part < self.num_parts else None


class StageTimes(NamedTuple):
    """How long one microbatch takes on one part of the model."""

    forward_s: float
    backward_s: float
    """Of a B action: with the weight gradients, unless the schedule has W actions."""
    weight_s: float = 0.0
    """Of a W action."""


@frozen
class Problem:
    """What a schedule is built for."""

    chain: Chain
    num_microbatches: int
    times: tuple[StageTimes, ...]
    """Of every part, in the order of the model; B is of the inputs only."""
    p2p_s: float = 0.0
    """Between two stages."""


@frozen
class Schedule:
    """What every stage does in one step, in order."""

    name: str
    """Key of SCHEDULES, or the file it came from."""
    num_stages: int
    num_microbatches: int
    ranks: tuple[tuple[Action, ...], ...]
    """Actions of stage s in ranks[s]."""
    num_chunks: int = 1
    """Parts of the model per stage."""
    placement: Placement = "loop"

    @cached_property
    def chain(self) -> Chain:
        """Where the parts of the model sit."""
        return Chain(
            num_stages=self.num_stages, num_chunks=self.num_chunks, placement=self.placement
        )


def equal_times(num_parts: int, times: StageTimes | None = None) -> tuple[StageTimes, ...]:
    """The same times for all parts; without any, F, B and W take one unit each."""
    unit = StageTimes(forward_s=1.0, backward_s=1.0, weight_s=1.0)
    return (times or unit,) * num_parts


def has_weight_actions(orders: Sequence[Sequence[Action]]) -> bool:
    """Whether backward is split into B and W, on all stages or on none."""
    return any(action.kind == "W" for action in orders[0])
