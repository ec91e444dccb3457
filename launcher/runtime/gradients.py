"""What happens to gradients outside autograd: float32 sums, tied copies, the global norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from launcher.runtime.groups import Axis, Groups


def accumulate_in_float32(
    parameters: Iterable[Parameter], add: Callable[[Parameter, Tensor], None]
) -> None:
    """Hand every gradient to `add` as soon as a backward has made it, and forget it.

    Without this, autograd would add bfloat16 gradients in bfloat16, where a sum stops growing at
    256 times its addends (8 bits of significand).
    """

    def collect(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        add(parameter, gradient)  # type: ignore[arg-type]

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(collect)


def sum_gradient(gradient: Tensor, axis: Axis | None) -> None:
    """Add up, in place, the gradients of the copies of one parameter."""
    if axis is not None and axis.group is not None:
        dist.all_reduce(gradient, group=axis.group)


def mark_partial_gradients(parameters: Iterable[Parameter]) -> None:
    """Sequence parallelism: what every tp rank holds whole has seen a piece of the sequence only.

    These are norms, biases of row-parallel layers and learned positions.
    """
    for parameter in parameters:
        is_whole = parameter.shard.dim is None  # type: ignore[attr-defined]
        parameter.is_partial_over_tp = is_whole  # type: ignore[attr-defined]


def partial_over_tp(parameters: Iterable[Parameter]) -> list[Parameter]:
    """The parameters whose gradients must be summed over tp before every optimizer step."""
    return [p for p in parameters if getattr(p, "is_partial_over_tp", False)]


def sum_partial_gradients(gradients: Sequence[Tensor], tp: Axis) -> None:
    """Sum these over tp, in place and in one buffer: they are many and small."""
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    sum_gradient(flat, tp)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_partial_gradients_in_backward(parameters: Iterable[Parameter], tp: Axis) -> None:
    """Sum them over tp in every backward: for engines that shard gradients as they come."""

    def add_up(gradient: Tensor) -> Tensor:
        total = gradient.to(torch.float32, copy=True)
        sum_gradient(total, tp)
        return total.to(gradient.dtype)

    for parameter in partial_over_tp(parameters):
        parameter.register_hook(add_up)


def global_norm(
    parameters: Sequence[Parameter],
    gradients: Sequence[Tensor],
    groups: Groups,
    is_cut_over_dp: bool = False,
) -> Tensor:
    """L2 norm of the whole model's gradient; each element counts once however often it is kept.

    A shard counts on every tp rank, a replicated parameter on the first, a copy whose owner is
    another rank never. Gradients are averaged over dp already; `is_cut_over_dp` says that each
    dp rank holds its own part of them.
    """
    counted = [
        gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if not _is_copy(parameter) and (_is_sharded(parameter) or groups.tp.index == 0)
    ]
    square = torch.zeros((), device=groups.device)
    if counted:
        square += torch.stack(torch._foreach_norm(counted)).square().sum()
    sum_gradient(square, groups.model)
    if is_cut_over_dp:
        sum_gradient(square, groups.replicas)
    return square.sqrt()


def _is_sharded(parameter: Parameter) -> bool:
    return bool(getattr(parameter, "model_parallel", False))


def _is_copy(parameter: Parameter) -> bool:
    return bool(getattr(parameter, "ds_pipe_replicated", False))
