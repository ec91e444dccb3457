"""One step of a pipeline stage: a schedule's actions, interpreted in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from launcher.plan.schedule_records import Action, Schedule, has_weight_actions
from launcher.runtime.engine import Engine
from launcher.runtime.groups import Groups
from launcher.runtime.model.context import ForwardContext
from launcher.runtime.parallel.split_backward import WeightQueue
from launcher.runtime.pipeline.p2p import Channels, Receive

FORWARD_ONLY = frozenset({"F", "send_forward", "recv_forward"})
"""What is left of a schedule when nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """What the data adds to one forward of one stage."""

    tokens_BS: Tensor | None
    """Read by the first stage only."""
    context: ForwardContext
    """Labels, read by the last stage only, and the place in the run."""


def run_schedule(
    schedule: Schedule,
    engine: Engine,
    channels: Channels,
    stage: int,
    microbatches: Sequence[Microbatch],
) -> Tensor | None:
    """Forward and backward of all microbatches; the mean of their losses on the last stage.

    Call it inside `engine.accumulate()`. All sends are over when it returns.
    """
    execution = _Execution(schedule, engine, channels, stage, microbatches)
    for action in execution.actions:
        execution.perform(action)
    return execution.finish()


@torch.no_grad()
def run_forward(
    schedule: Schedule,
    engine: Engine,
    channels: Channels,
    stage: int,
    microbatches: Sequence[Microbatch],
) -> Tensor | None:
    """Forward of all microbatches, nothing else; the mean of their losses on the last stage."""
    execution = _Execution(schedule, engine, channels, stage, microbatches)
    for action in schedule.ranks[stage]:
        if action.kind in FORWARD_ONLY:
            execution.perform(action)
    return execution.finish()


def average_loss(loss: Tensor | None, groups: Groups) -> Tensor:
    """The last stages' losses, averaged over dp x cp, on every rank; every rank must call it."""
    total = torch.zeros((), device=groups.device) if loss is None else loss.detach().clone()
    if groups.pp.group is not None:
        dist.all_reduce(total, group=groups.pp.group)
    if groups.replicas.group is not None:
        dist.all_reduce(total, group=groups.replicas.group)
    return total / groups.replicas.size


Place = tuple[int, int]
"""(microbatch, chunk)"""


def join_backwards(actions: Sequence[Action]) -> tuple[list[Action], set[Place]]:
    """The actions, and where B is a whole backward: there W came right behind it and is left out.

    Each weight gradient so follows its input gradient at once, and what both read dies earlier.
    Receives in between are posted before B. Where B sends its result on, it stays apart: who waits
    for that must not wait for W.
    """
    joined: list[Action] = []
    whole: set[Place] = set()
    for action in actions:
        place = (action.microbatch, action.chunk)
        end = len(joined)
        while end and joined[end - 1].kind.startswith("recv"):
            end -= 1
        if action.kind == "W" and end and joined[end - 1] == ("B", *place):
            joined.append(joined.pop(end - 1))
            whole.add(place)
        else:
            joined.append(action)
    return joined, whole


class _Execution:
    """What is alive on one stage in the middle of a step, by microbatch and chunk."""

    def __init__(
        self,
        schedule: Schedule,
        engine: Engine,
        channels: Channels,
        stage: int,
        microbatches: Sequence[Microbatch],
    ) -> None:
        self.engine = engine
        self.channels = channels
        self.microbatches = microbatches
        neighbour, chunks = schedule.chain.neighbour, range(schedule.num_chunks)
        self.before = [neighbour(stage, chunk, -1) for chunk in chunks]
        self.behind = [neighbour(stage, chunk, 1) for chunk in chunks]
        self.stage = stage
        self.actions: Sequence[Action] = schedule.ranks[stage]
        self.queue: WeightQueue | None = None
        self.whole: set[Place] = set()
        """Where B and W are one."""
        if has_weight_actions(schedule.ranks):
            self.queue = engine.module.weight_queue  # type: ignore[assignment]
            assert self.queue is not None, "the stage was not built for a split backward"
            if self.queue.adds_in_place:
                self.actions, self.whole = join_backwards(self.actions)
        self.arriving: dict[tuple[str, Place], Receive | Tensor] = {}
        self.put_off: dict[tuple[str, Place], Callable[[int], Receive]] = {}
        self.inputs: dict[Place, Tensor] = {}
        self.outputs: dict[Place, Tensor | GradientEdge] = {}
        self.outgoing: dict[tuple[str, Place], Tensor] = {}
        self.sends: dict[tuple[str, Place], tuple[Any, Tensor]] = {}
        self.losses: list[Tensor] = []

    def perform(self, action: Action) -> None:
        place = (action.microbatch, action.chunk)
        match action.kind:
            case "F":
                self._forward(place)
            case "B":
                self._backward(place)
            case "W":
                assert self.queue is not None
                self.queue.compute(place)
            case "recv_forward":
                self._receive("F", place, self.channels.receive_forward)
            case "recv_backward":
                self._receive("B", place, self.channels.receive_backward)
            case "send_forward":
                self._send("F", place, self.channels.send_forward)
            case "send_backward":
                self._send("B", place, self.channels.send_backward)
            case _:
                raise NotImplementedError(f"action {action.kind}")

    def finish(self) -> Tensor | None:
        """Wait for the sends that are still under way."""
        left = [list(kept) for kept in (self.arriving, self.inputs, self.outputs, self.outgoing)]
        assert not any(left), f"the schedule leaves {left} behind"
        assert not self.queue, (
            f"the schedule leaves {len(self.queue or ())} weight gradients behind"
        )
        for work, _ in self.sends.values():
            work.wait()
        return torch.stack(self.losses).mean() if self.losses else None

    def _forward(self, place: Place) -> None:
        microbatch, chunk = place
        data, before, behind = self.microbatches[microbatch], self.before[chunk], self.behind[chunk]
        context = replace(data.context, chunk=chunk) if chunk else data.context
        if before is None:
            assert data.tokens_BS is not None
            x = data.tokens_BS
        else:
            x = self._take("F", place)
        trains = torch.is_grad_enabled()
        if trains and before is not None:
            self.inputs[place] = x.requires_grad_()
        output = self.engine.forward(x, context)
        if behind is None:
            self.losses.append(output.detach())
            if trains:
                self.outputs[place] = output
            return
        self._hand_over("F", place, behind, output.detach().contiguous())
        if trains:
            # The edge leads into the graph without holding the output, which so dies when sent.
            self.outputs[place] = get_gradient_edge(output)

    def _backward(self, place: Place) -> None:
        gradient, before = None, self.before[place[1]]
        if self.behind[place[1]] is not None:
            gradient = self._take("B", place)
            if ("F", place) in self.sends:
                # Its gradient is here, so the activation must have arrived: this does not block.
                self.sends.pop(("F", place))[0].wait()
        queue = None if place in self.whole else self.queue
        with nullcontext() if queue is None else queue.collect(place):
            self.engine.backward(self.outputs.pop(place), gradient)
        if before is not None:
            gradient = self.inputs.pop(place).grad
            assert gradient is not None
            self._hand_over("B", place, before, gradient.contiguous())

    def _receive(self, kind: str, place: Place, post: Callable[[int], Receive]) -> None:
        """Post a receive, or put it off until its tensor is needed."""
        if self.channels.overlaps:
            self.arriving[kind, place] = post(place[1])
        else:
            self.put_off[kind, place] = post

    def _take(self, kind: str, place: Place) -> Tensor:
        """The input of a pass, once it is there."""
        while (kind, place) in self.put_off:
            # What stands before it comes first: a channel is first in, first out.
            first = next(iter(self.put_off))
            self.arriving[first] = self.put_off.pop(first)(first[1][1])
        arriving = self.arriving.pop((kind, place))
        return arriving if isinstance(arriving, Tensor) else arriving.wait()

    def _hand_over(self, kind: str, place: Place, target: tuple[int, int], tensor: Tensor) -> None:
        """Lay a result out for its send, or give it to the neighbouring part on this stage."""
        if target[0] == self.stage:
            self.arriving[kind, (place[0], target[1])] = tensor
        else:
            self.outgoing[kind, place] = tensor

    def _send(self, kind: str, place: Place, send: Callable[[Tensor, int], Any]) -> None:
        """Start a send, hold on to its tensor, and let go of gradients that have arrived.

        NCCL tells when they have; gloo does not before one waits, which is left to the end.
        """
        tensor = self.outgoing.pop((kind, place))
        self.sends[kind, place] = (send(tensor, place[1]), tensor)
        for key, (work, _) in list(self.sends.items()):
            if key[0] == "B" and work.is_completed():
                self.sends.pop(key)[0].wait()
