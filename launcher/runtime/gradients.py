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
        sum_gradient(square, groups.dp)
    return square.sqrt()


def _is_sharded(parameter: Parameter) -> bool:
    return bool(getattr(parameter, "model_parallel", False))


def _is_copy(parameter: Parameter) -> bool:
    return bool(getattr(parameter, "ds_pipe_replicated", False))
