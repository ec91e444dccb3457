"""How neighbouring stages talk: one first-in-first-out channel per direction, without blocking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.runtime.groups import Groups


@dataclass(frozen=True, kw_only=True)
class Receive:
    """A tensor on its way."""

    buffer: Tensor
    work: Any

    def wait(self) -> Tensor:
        """The tensor, once it is there (on CUDA: once the current stream gets there)."""
        self.work.wait()
        return self.buffer


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Links of one stage with the stage before it and the stage behind it.

    Activations and gradients have a process group each: NCCL runs the transfers of a pair in the
    order of their posting, and a stage posts the receive of a gradient before it sends the
    activation that this gradient waits for.
    """

    previous: int | None
    """Global rank of the stage before; None on the first."""
    next: int | None
    """Global rank of the stage behind; None on the last."""
    forward: dist.ProcessGroup | None
    backward: dist.ProcessGroup | None
    shape: tuple[int, int, int]
    """Micro batch, sequence, hidden: the same for all activations and their gradients."""
    dtype: torch.dtype
    device: torch.device

    def receive_forward(self) -> Receive:
        """Post the receive of the next activation."""
        return self._receive(self.previous, self.forward)

    def receive_backward(self) -> Receive:
        """Post the receive of the next gradient."""
        return self._receive(self.next, self.backward)

    def send_forward(self, activation: Tensor) -> Any:
        """Start to send an activation, which must stay alive until the returned work is done."""
        return self._send(activation, self.next, self.forward)

    def send_backward(self, gradient: Tensor) -> Any:
        """Start to send a gradient, which must stay alive until the returned work is done."""
        return self._send(gradient, self.previous, self.backward)

    def _receive(self, source: int | None, group: dist.ProcessGroup | None) -> Receive:
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return Receive(buffer=buffer, work=dist.irecv(buffer, source, group=group))

    def _send(self, tensor: Tensor, target: int | None, group: dist.ProcessGroup | None) -> Any:
        assert (tensor.shape, tensor.dtype) == (self.shape, self.dtype), (
            f"{tuple(tensor.shape)} {tensor.dtype} on a channel for {self.shape} {self.dtype}"
        )
        assert target is not None
        return dist.isend(tensor, target, group=group)


def build_channels(groups: Groups, shape: tuple[int, int, int], dtype: torch.dtype) -> Channels:
    """The channels of this rank's stage; every rank must call it, at the same place."""
    stage, ranks = groups.pp.index, groups.pp.ranks
    forward = backward = None
    if groups.pp.size > 1:
        forward = dist.new_group(list(ranks), use_local_synchronization=True)
        backward = dist.new_group(list(ranks), use_local_synchronization=True)
    channels = Channels(
        previous=ranks[stage - 1] if stage > 0 else None,
        next=ranks[stage + 1] if stage + 1 < len(ranks) else None,
        forward=forward,
        backward=backward,
        shape=shape,
        dtype=dtype,
        device=groups.device,
    )
    _connect(channels)
    return channels


def _connect(channels: Channels) -> None:
    """Use every link once, from the first stage to the last.

    NCCL joins a pair at its first transfer, and the join blocks until both have called it: in a
    schedule's order that can deadlock, in this order it cannot.
    """
    token = torch.zeros(1, device=channels.device)
    if channels.previous is not None:
        dist.recv(token, channels.previous, group=channels.forward)
        dist.send(token, channels.previous, group=channels.backward)
    if channels.next is not None:
        dist.send(token, channels.next, group=channels.forward)
        dist.recv(token, channels.next, group=channels.backward)
