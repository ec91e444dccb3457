"""How tensor-parallel ranks talk: the only place with tensor-parallel collectives.

Callers apply these only on an axis of more than one rank; with one rank they are absent.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.runtime.groups import Axis


@torch._disable_dynamo  # type: ignore[attr-defined]
def copy_to_tp(x: Tensor, axis: Axis) -> Tensor:
    """Give x to every rank: identity forward, sum of the ranks' gradients backward."""
    return _CopyToRanks.apply(x, axis)  # type: ignore[no-any-return, no-untyped-call]


@torch._disable_dynamo  # type: ignore[attr-defined]
def reduce_from_tp(x: Tensor, axis: Axis) -> Tensor:
    """Sum the ranks' partial results: all-reduce forward, identity backward.

    The sum is written into x, which no caller may use afterwards.
    """
    return _ReduceFromRanks.apply(x, axis)  # type: ignore[no-any-return, no-untyped-call]


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


class _ReduceFromRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.mark_dirty(x)
        return sum_over(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
