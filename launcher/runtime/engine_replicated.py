"""Data parallelism without ZeRO: every replica keeps all of its gradients and optimizer state.

DeepSpeed's own stage 0 is not used: it adds bfloat16 gradients in bfloat16 (it refuses a float32
`grad_accum_dtype` there), and its norm counts a tied embedding on both stages (`clip_grad_norm_`
in runtime/utils.py, 0.19.8, does not read `ds_pipe_replicated`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from launcher.config.schema import Run
from launcher.plan.memory_held import BUCKET_ELEMENTS
from launcher.plan.records import Layout
from launcher.runtime.gradients import (
    accumulate_in_float32,
    global_norm,
    partial_over_tp,
    sum_gradient,
    sum_partial_gradients,
)
from launcher.runtime.groups import Groups
from launcher.runtime.model.stage import tied_parameter
from launcher.runtime.optimizer import build_optimizer, set_learning_rate
from launcher.runtime.state import (
    StatePiece,
    held_kinds,
    prepare_optimizer_state,
    set_optimizer_step,
    shard_of,
    shard_pieces,
)


class ReplicatedEngine:
    """ZeRO stage 0. See `Engine` for the methods."""

    def __init__(self, module: nn.Module, run: Run, layout: Layout, groups: Groups) -> None:
        self.module = module.to(groups.device)
        self._groups = groups
        self._clip_norm = run.optimizer.clip_grad_norm
        self._loss_share = torch.tensor(1.0 / layout.num_microbatches, device=groups.device)
        self._parameters = list(self.module.parameters())
        self._masters = self._parameters
        if run.precision.compute == "bf16":
            self._keep_float32_masters()
        elif getattr(module, "weight_queue", None) is not None:
            module.weight_queue.adds_in_place = True  # type: ignore[union-attr]
        tied = tied_parameter(module)
        self._tied = None if tied is None else self._master_of(tied)
        self._partial = [self._master_of(p) for p in partial_over_tp(self._parameters)]
        self._optimizer = build_optimizer(self._masters, run.optimizer)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        """See `Engine`."""
        return self.module(x, context)  # type: ignore[no-any-return]

    def backward(self, output: Tensor | GradientEdge, gradient: Tensor | None) -> None:
        """See `Engine`."""
        torch.autograd.backward(output, self._loss_share if gradient is None else gradient)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """See `Engine`."""
        yield
        if self._tied is not None:
            assert self._tied.grad is not None
            sum_gradient(self._tied.grad, self._groups.embedding)
        partial = [p.grad for p in self._partial if p.grad is not None]
        sum_partial_gradients(partial, self._groups.tp)
        self._average_over_replicas()

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        gradients = self._gradients()
        norm = global_norm(self._masters, gradients, self._groups)
        if self._clip_norm is not None:
            factor = (self._clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._update_compute_weights()
        return float(norm)

    def gradients(self) -> dict[str, Tensor]:
        """See `Engine`."""
        names = [name for name, _ in self.module.named_parameters()]
        gradients = [g.detach().to("cpu", torch.float32, copy=True) for g in self._gradients()]
        return dict(zip(names, gradients, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {
            name: self._master_of(parameter).detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.module.named_parameters()
        }

    def state(self) -> list[StatePiece]:
        """See `Engine`. All replicas hold the same and share the saving."""
        prepare_optimizer_state(self._optimizer, self._masters)
        kinds = held_kinds(self._optimizer)
        replicas, pieces = self._groups.replicas, []
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            live = {"weight": master.detach()}
            live |= {kind: self._optimizer.state[master][key] for kind, key in kinds}
            for kind, values in live.items():
                pieces += shard_pieces(
                    kind, shard_of(parameter), tuple(master.shape), values.view(-1),
                    copy=replicas.index, num_copies=replicas.size,
                )  # fmt: skip
        return pieces

    def state_loaded(self, step: int) -> None:
        """See `Engine`."""
        set_optimizer_step(self._optimizer, step)
        self._update_compute_weights()

    def _update_compute_weights(self) -> None:
        if self._masters is not self._parameters:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, self._masters)

    def _keep_float32_masters(self) -> None:
        """Compute in bfloat16; update, and add gradients, in float32."""
        for parameter in self._parameters:
            parameter.data = parameter.data.bfloat16()
        self._masters = [Parameter(parameter.detach().float()) for parameter in self._parameters]
        masters = {id(p): master for p, master in zip(self._parameters, self._masters, strict=True)}
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            for mark in ("model_parallel", "ds_pipe_replicated"):
                setattr(master, mark, getattr(parameter, mark, False))

        def add(parameter: Parameter, gradient: Tensor) -> None:
            master = masters[id(parameter)]
            if master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad += gradient

        accumulate_in_float32(self._parameters, add)

    def _master_of(self, parameter: Parameter) -> Parameter:
        index = next(i for i, other in enumerate(self._parameters) if other is parameter)
        return self._masters[index]

    def _gradients(self) -> list[Tensor]:
        for master in self._masters:
            if master.grad is None:  # a parameter that took no part, as on an empty stage
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self._masters if master.grad is not None]

    def _average_over_replicas(self) -> None:
        if self._groups.replicas.group is None:
            return
        for bucket in _buckets(self._gradients()):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            flat /= self._groups.replicas.size
            dist.all_reduce(flat, group=self._groups.replicas.group)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in order, cut where a bucket is full; each bucket has at least one."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    yield bucket
