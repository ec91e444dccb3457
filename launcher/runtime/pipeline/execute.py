"""One step of a pipeline stage: a schedule's actions, interpreted in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from launcher.plan.schedule import Schedule
from launcher.runtime.engine import Engine
from launcher.runtime.groups import Groups
from launcher.runtime.model.context import ForwardContext
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
    execution = _Execution(engine, channels, microbatches)
    for action in schedule.ranks[stage]:
        execution.perform(action.kind, action.microbatch)
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
    execution = _Execution(engine, channels, microbatches)
    for action in schedule.ranks[stage]:
        if action.kind in FORWARD_ONLY:
            execution.perform(action.kind, action.microbatch)
    return execution.finish()


def average_loss(loss: Tensor | None, groups: Groups) -> Tensor:
    """The last stages' losses, averaged over dp, on every rank; every rank must call it."""
    total = torch.zeros((), device=groups.device) if loss is None else loss.detach().clone()
    if groups.pp.group is not None:
        dist.all_reduce(total, group=groups.pp.group)
    if groups.dp.group is not None:
        dist.all_reduce(total, group=groups.dp.group)
    return total / groups.dp.size


class _Execution:
    """What is alive on one stage in the middle of a step, by microbatch."""

    def __init__(
        self, engine: Engine, channels: Channels, microbatches: Sequence[Microbatch]
    ) -> None:
        self.engine = engine
        self.channels = channels
        self.microbatches = microbatches
        self.receives: dict[tuple[str, int], Receive] = {}
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor | GradientEdge] = {}
        self.outgoing: dict[tuple[str, int], Tensor] = {}
        self.sends: dict[tuple[str, int], tuple[Any, Tensor]] = {}
        self.losses: list[Tensor] = []

    def perform(self, kind: str, microbatch: int) -> None:
        match kind:
            case "F":
                self._forward(microbatch)
            case "B":
                self._backward(microbatch)
            case "recv_forward":
                self.receives["F", microbatch] = self.channels.receive_forward()
            case "recv_backward":
                self.receives["B", microbatch] = self.channels.receive_backward()
            case "send_forward":
                self._send("F", microbatch, self.channels.send_forward)
            case "send_backward":
                self._send("B", microbatch, self.channels.send_backward)
            case _:
                raise NotImplementedError(f"action {kind}")

    def finish(self) -> Tensor | None:
        """Wait for the sends that are still under way."""
        left = [self.receives, self.inputs, self.outputs, self.outgoing]
        assert not any(left), f"the schedule leaves {left} behind"
        for work, _ in self.sends.values():
            work.wait()
        return torch.stack(self.losses).mean() if self.losses else None

    def _forward(self, microbatch: int) -> None:
        data = self.microbatches[microbatch]
        if self.channels.previous is None:
            assert data.tokens_BS is not None
            x = data.tokens_BS
        else:
            x = self.receives.pop(("F", microbatch)).wait()
        trains = torch.is_grad_enabled()
        if trains and self.channels.previous is not None:
            self.inputs[microbatch] = x.requires_grad_()
        output = self.engine.forward(x, data.context)
        if self.channels.next is None:
            self.losses.append(output.detach())
            if trains:
                self.outputs[microbatch] = output
            return
        self.outgoing["F", microbatch] = output.detach().contiguous()
        if trains:
            # The edge leads into the graph without holding the output, which so dies when sent.
            self.outputs[microbatch] = get_gradient_edge(output)

    def _backward(self, microbatch: int) -> None:
        gradient = None
        if self.channels.next is not None:
            gradient = self.receives.pop(("B", microbatch)).wait()
            # Its gradient is here, so the activation must have arrived: this does not block.
            self.sends.pop(("F", microbatch))[0].wait()
        self.engine.backward(self.outputs.pop(microbatch), gradient)
        if self.channels.previous is not None:
            gradient = self.inputs.pop(microbatch).grad
            assert gradient is not None
            self.outgoing["B", microbatch] = gradient.contiguous()

    def _send(self, kind: str, microbatch: int, send: Callable[[Tensor], Any]) -> None:
        """Start a send, hold on to its tensor, and let go of gradients that have arrived.

        NCCL tells when they have; gloo does not before one waits, which is left to the end.
        """
        tensor = self.outgoing.pop((kind, microbatch))
        self.sends[kind, microbatch] = (send(tensor), tensor)
        for key, (work, _) in list(self.sends.items()):
            if key[0] == "B" and work.is_completed():
                self.sends.pop(key)[0].wait()
