"""How stages talk: one first-in-first-out channel per pair and direction, without blocking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.config.schema import Model
from launcher.plan.records import Layout
from launcher.plan.schedule_records import Chain
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
class Link:
    """One end of a channel."""

    peer: int
    """Global rank of the other end."""
    group: dist.ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Links of one stage with those that have the parts of the model before and behind its own.

    Activations and gradients, and either way along the ranks, have a process group each: NCCL runs
    the transfers of a pair in the order of their posting, and a stage posts the receive of a
    gradient before it sends the activation that this gradient waits for.
    """

    links: dict[tuple[str, int], Link]
    """By kind of transfer and chunk; absent where there is no such neighbour on another stage."""
    shape: tuple[int, int, int]
    """Micro batch, sequence, hidden: the same for all activations and their gradients."""
    dtype: torch.dtype
    device: torch.device
    overlaps: bool = True
    """False: a receive is posted when its tensor is needed, and nothing is computed meanwhile."""

    def receive_forward(self, chunk: int = 0) -> Receive:
        """Post the receive of the next activation for a chunk."""
        return self._receive(self.links["recv_forward", chunk])

    def receive_backward(self, chunk: int = 0) -> Receive:
        """Post the receive of the next gradient for a chunk."""
        return self._receive(self.links["recv_backward", chunk])

    def send_forward(self, activation: Tensor, chunk: int = 0) -> Any:
        """Start to send an activation, which must stay alive until the returned work is done."""
        return self._send(activation, "send_forward", chunk)

    def send_backward(self, gradient: Tensor, chunk: int = 0) -> Any:
        """Start to send a gradient, which must stay alive until the returned work is done."""
        return self._send(gradient, "send_backward", chunk)

    def _receive(self, link: Link) -> Receive:
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return Receive(buffer=buffer, work=dist.irecv(buffer, link.peer, group=link.group))

    def _send(self, tensor: Tensor, kind: str, chunk: int) -> Any:
        assert (tensor.shape, tensor.dtype) == (self.shape, self.dtype), (
            f"{tuple(tensor.shape)} {tensor.dtype} on a channel for {self.shape} {self.dtype}"
        )
        link = self.links[kind, chunk]
        return dist.isend(tensor, link.peer, group=link.group)


def boundary_shape(layout: Layout, model: Model) -> tuple[int, int, int]:
    """What passes between stages: micro batch, sequence (a rank's piece of it), hidden."""
    pieces = layout.cp * (layout.tp if layout.sequence_parallel else 1)
    return layout.micro_batch_size, layout.sequence_length // pieces, model.hidden_size


Wire = tuple[str, int, int]
"""forward or backward, stage that sends, stage that receives."""


def build_channels(
    groups: Groups,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    chain: Chain | None = None,
    overlaps: bool = True,
) -> Channels:
    """The channels of this rank's stage; every rank must call it, at the same place."""
    chain = chain or Chain(num_stages=groups.pp.size)
    wires = _list_wires(chain)
    made = {
        way: dist.new_group(list(groups.pp.ranks), use_local_synchronization=True)
        for way in sorted({_way(wire) for wire in wires})
    }
    links = {}
    for (kind, chunk), wire in _ends(chain, groups.pp.index).items():
        other = wire[1] if kind.startswith("recv") else wire[2]
        links[kind, chunk] = Link(peer=groups.pp.ranks[other], group=made[_way(wire)])
    _connect(wires, made, groups)
    return Channels(links=links, shape=shape, dtype=dtype, device=groups.device, overlaps=overlaps)


def _way(wire: Wire) -> tuple[str, bool]:
    """Transfers that may share a process group: of one direction, up or down the ranks."""
    direction, source, target = wire
    return direction, source < target


def _ends(chain: Chain, stage: int) -> dict[tuple[str, int], Wire]:
    """Every transfer of a stage, by kind and chunk, with the wire that it goes over."""
    ends: dict[tuple[str, int], Wire] = {}
    for chunk in range(chain.num_chunks):
        before, behind = (chain.neighbour(stage, chunk, step) for step in (-1, 1))
        if before is not None and before[0] != stage:
            ends["recv_forward", chunk] = ("forward", before[0], stage)
            ends["send_backward", chunk] = ("backward", stage, before[0])
        if behind is not None and behind[0] != stage:
            ends["send_forward", chunk] = ("forward", stage, behind[0])
            ends["recv_backward", chunk] = ("backward", behind[0], stage)
    return ends


def _list_wires(chain: Chain) -> list[Wire]:
    """All wires of the pipeline, in the order that every rank agrees on."""
    wires = {wire for stage in range(chain.num_stages) for wire in _ends(chain, stage).values()}
    return sorted(wires)


def _connect(wires: list[Wire], made: dict[tuple[str, bool], Any], groups: Groups) -> None:
    """Use every wire once, in one order.

    NCCL joins a pair at its first transfer, and the join blocks until both have called it: in a
    schedule's order that can deadlock, in an order that all agree on it cannot.
    """
    token = torch.zeros(1, device=groups.device)
    stage, ranks = groups.pp.index, groups.pp.ranks
    for wire in wires:
        _, source, target = wire
        if stage == source:
            dist.send(token, ranks[target], group=made[_way(wire)])
        elif stage == target:
            dist.recv(token, ranks[source], group=made[_way(wire)])
