"""How ranks that share a matrix or a sequence talk: the only place with such collectives.

Callers apply these only on an axis of more than one rank; with one rank they are absent.

Between two cut products an activation *rests*: as a copy on every rank (`Copies`) or, with sequence
parallelism, as one piece of the sequence per rank (`SequencePieces`, arXiv:2205.05198, sec. 4.2.2).
Products read it *whole* and give *partial sums*. To make it whole and to sum it up are each other's
backward in both cases, and move the same bytes.
"""

# Shapes: B samples, S tokens, s = S / tp tokens of a rank's piece, H features.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.runtime.groups import Axis
from launcher.runtime.outside_graphs import outside_graphs


class Pending:
    """A result that is on its way."""

    def __init__(self, work: Any, finish: Callable[[], Tensor]) -> None:
        self._work, self._finish = work, finish
        self._result: Tensor | None = None

    def wait(self) -> Tensor:
        """The result, once it is there (on CUDA: once the current stream gets there)."""
        if self._result is None:
            if self._work is not None:
                self._work.wait()
            self._result = self._finish()
            self._work = None
        return self._result


class Exchange(Protocol):
    """How activations get from rest to whole, and from partial sums to rest."""

    axis: Axis

    def start_whole(self, x: Tensor) -> Pending:
        """At rest in, whole out."""

    def start_sum(self, x: Tensor) -> Pending:
        """Partial sums in, whose memory may be used, at rest out."""


class Copies:
    """Activations rest whole on every rank."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def start_whole(self, x: Tensor) -> Pending:
        """Nothing to do."""
        return Pending(None, lambda: x)

    def start_sum(self, x: Tensor) -> Pending:
        """All-reduce in place."""
        x = x.contiguous()
        work = dist.all_reduce(x, group=self.axis.group, async_op=True)
        return Pending(work, lambda: x)


class SequencePieces:
    """Activations rest cut along the sequence: rank i of n has the i-th of n equal pieces."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def start_whole(self, x: Tensor) -> Pending:
        """All-gather [B, s, H] into [B, S, H]."""
        x = x.contiguous()
        num_samples, length, *features = x.shape
        gathered = x.new_empty((self.axis.size * num_samples, length, *features))
        work = _all_gather(gathered, x, self.axis)

        def finish() -> Tensor:
            pieces = gathered.view(self.axis.size, num_samples, length, *features)
            return pieces.transpose(0, 1).reshape(num_samples, -1, *features)

        return Pending(work, finish)

    def start_sum(self, x: Tensor) -> Pending:
        """Reduce-scatter [B, S, H] into [B, s, H]."""
        pieces = x.unflatten(1, (self.axis.size, -1)).transpose(0, 1)
        return start_scatter(pieces, self.axis)


@outside_graphs
def sum_to_rest(x: Tensor, exchange: Exchange) -> Tensor:
    """Sum the ranks' partial results; x, in which the sum may be written, is used up."""
    return _SumToRest.apply(x, exchange)  # type: ignore[no-any-return, no-untyped-call]


@outside_graphs
def copy_to_ranks(x: Tensor, axis: Axis) -> Tensor:
    """Give x to every rank: identity forward, sum of the ranks' gradients backward."""
    return _CopyToRanks.apply(x, axis)  # type: ignore[no-any-return, no-untyped-call]


def start_gather(x: Tensor, axis: Axis) -> Pending:
    """All-gather: every rank's x, [ranks, *x.shape]."""
    x = x.contiguous()
    gathered = x.new_empty((axis.size, *x.shape))
    work = _all_gather(gathered.flatten(0, 1), x, axis)
    return Pending(work, lambda: gathered)


def start_scatter(parts: Tensor, axis: Axis) -> Pending:
    """Reduce-scatter: the sum over the ranks of what each has for this one, parts[index]."""
    parts = parts.contiguous()
    if parts.is_cpu:
        return _scatter_by_exchange(parts, axis)
    summed = parts.new_empty(parts.shape[1:])
    work = _reduce_scatter(summed, parts.flatten(0, 1), axis)
    return Pending(work, lambda: summed)


def _scatter_by_exchange(parts: Tensor, axis: Axis) -> Pending:
    """What gloo's own is no match for: it sums everything on every rank, and cuts afterwards."""
    received = torch.empty_like(parts)
    work = dist.all_to_all_single(received, parts, group=axis.group, async_op=True)
    return Pending(work, lambda: received.sum(0))


def exchange(parts: Tensor, axis: Axis) -> Tensor:
    """All-to-all: part j goes to rank j; what comes is in the order of ranks, too."""
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=axis.group)
    return received


def start_pass_on(x: Tensor, axis: Axis) -> Pending:
    """A step around the ring: x goes to the next rank, the previous rank's comes."""
    following, previous = (axis.index + 1) % axis.size, (axis.index - 1) % axis.size
    return start_send_and_receive(x, axis, following, previous)


def start_send_and_receive(x: Tensor, axis: Axis, to: int | None, source: int | None) -> Pending:
    """Send x to a rank of the axis, receive another's like it; None: nothing (which is empty).

    Until it is waited for, the result holds what is sent.
    """
    assert x.is_contiguous()
    received = torch.empty_like(x) if source is not None else x.new_empty(0)
    transfers = []
    if to is not None:
        transfers.append(dist.P2POp(dist.isend, x, axis.ranks[to], axis.group))
    if source is not None:
        transfers.append(dist.P2POp(dist.irecv, received, axis.ranks[source], axis.group))
    works = dist.batch_isend_irecv(transfers) if transfers else []
    return Pending(_All(works, x), lambda: received)


class _All:
    """Several transfers, and a tensor that must live as long."""

    def __init__(self, works: list[Any], sent: Tensor) -> None:
        self._works, self._sent = works, sent

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def sum_over(x: Tensor, axis: Axis) -> Tensor:
    """All-reduce in place, without autograd."""
    dist.all_reduce(x, op=dist.ReduceOp.SUM, group=axis.group)
    return x


def maximum_over(x: Tensor, axis: Axis) -> Tensor:
    """All-reduce of the largest value in place, without autograd."""
    dist.all_reduce(x, op=dist.ReduceOp.MAX, group=axis.group)
    return x


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # In place: x feeds matrix products only, and their gradients have no other reader.
        return sum_over(grad.contiguous(), ctx.axis), None


class _SumToRest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        result = exchange.start_sum(x).wait()
        if result is x:
            ctx.mark_dirty(x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.start_whole(grad).wait(), None


def _all_gather(into: Tensor, x: Tensor, axis: Axis) -> Any:
    # torch 2.13 has new names for both, and warns about the old ones.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(into, x, group=axis.group, async_op=True)


def _reduce_scatter(into: Tensor, x: Tensor, axis: Axis) -> Any:
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return scatter(into, x, group=axis.group, async_op=True)
