"""DeepSpeed's ZeRO 1, 2 and 3 as data-parallel engines for one stage of the model (0.19.8).

Two ways of reducing gradients over dp:

- gathered (ZeRO-1, and ZeRO-2 under a pipeline): microbatches add up locally, one reduction per
  step. A tied embedding needs this: the sum over its two stages comes before the cut over dp.
- streamed (ZeRO-3, and ZeRO-2 without a pipeline): each backward reduces its gradients into the
  shard that their owner keeps, so that no rank ever holds all of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from launcher.config.schema import Run
from launcher.plan.records import Layout
from launcher.runtime.deepspeed_import import import_deepspeed
from launcher.runtime.gradients import (
    accumulate_in_float32,
    partial_over_tp,
    sum_gradient,
    sum_partial_gradients,
    sum_partial_gradients_in_backward,
)
from launcher.runtime.groups import Axis, Groups
from launcher.runtime.model.stage import tied_parameter
from launcher.runtime.optimizer import build_optimizer, set_learning_rate
from launcher.runtime.state import StatePiece
from launcher.runtime.zero_state import take_over, zero_pieces


class DeepSpeedEngine:
    """ZeRO stages 1 to 3. See `Engine` for the methods."""

    def __init__(
        self,
        module: nn.Module,
        run: Run,
        layout: Layout,
        groups: Groups,
        ds_config: dict[str, Any],
    ) -> None:
        assert layout.zero_stage < 3 or layout.pp == 1, "ZeRO-3 and a pipeline exclude each other"
        deepspeed = import_deepspeed(groups)
        self.module = module
        self._groups = groups
        self._num_microbatches = layout.num_microbatches
        self._num_expected = layout.num_microbatches * layout.vpp
        self._num_backwards = 0
        self._loss_share = torch.tensor(1.0 / layout.num_microbatches, device=groups.device)
        self._streams = layout.zero_stage == 3 or (layout.zero_stage == 2 and layout.pp == 1)
        self._zero_stage = layout.zero_stage
        parameters = list(module.parameters())
        if layout.zero_stage == 3:
            _mark_for_zero3_norm(parameters)
        if self._streams:
            sum_partial_gradients_in_backward(parameters, groups.tp)
        self._partial = partial_over_tp(parameters)
        with redirect_stdout(io.StringIO()):  # it prints memory figures, whatever its log level
            self._deepspeed, self._zero, _, _ = deepspeed.initialize(
                model=module,
                optimizer=build_optimizer(parameters, run.optimizer),
                config=dict(ds_config),
                mpu=_ModelParallelUnit(groups),
            )
        self._is_bf16 = run.precision.compute == "bf16"
        # BF16_Optimizer, which DeepSpeed takes for this pair, adds in float32 by itself.
        self._has_float32_sums = self._is_bf16 and layout.zero_stage == 1
        if not self._streams and not self._has_float32_sums:
            # Its hooks have nothing to do until the end of the step, and take 2 % of it.
            for hook in self._zero._grad_acc_hooks:
                hook.remove()
            if self._is_bf16:
                self._gather_in_float32(parameters)
        self._tied = tied_parameter(module)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        """See `Engine`."""
        forward = self._deepspeed if self._streams else self.module
        return forward(x, context)  # type: ignore[no-any-return]

    def backward(self, output: Tensor | GradientEdge, gradient: Tensor | None) -> None:
        """See `Engine`."""
        self._num_backwards += 1
        if not self._streams:
            torch.autograd.backward(output, self._loss_share if gradient is None else gradient)
            return
        assert isinstance(output, Tensor), "streaming excludes a pipeline"
        # Forwards do this too, but with all of them ahead (GPipe) gradients would be overwritten.
        self._zero.clear_backward_seen_flag()
        is_last = self._num_backwards == self._num_microbatches
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        self._deepspeed.backward(output / self._num_microbatches, scale_wrt_gas=False)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """See `Engine`."""
        self._num_backwards = 0
        if self._streams:
            yield
        else:
            yield from self._gather()
        assert self._num_backwards == self._num_expected

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        set_learning_rate(self._zero, learning_rate)
        self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm())

    def gradients(self) -> dict[str, Tensor]:
        """See `Engine`."""
        from deepspeed.utils import safe_get_full_grad

        return {
            name: safe_get_full_grad(p).detach().to("cpu", torch.float32, copy=True)
            for name, p in self.module.named_parameters()
        }

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {name: self._whole(p) for name, p in self.module.named_parameters()}

    def state(self) -> list[StatePiece]:
        """See `Engine`."""
        return zero_pieces(self._zero, self.module, self._zero_stage)

    def state_loaded(self, step: int) -> None:
        """See `Engine`."""
        take_over(self._zero, self._zero_stage, step)

    def _gather(self) -> Iterator[None]:
        """Keep gradients local while microbatches run, then sum tied ones and reduce over dp."""
        self._deepspeed.set_gradient_accumulation_boundary(True)
        sums = self._has_float32_sums
        with nullcontext() if sums else self._deepspeed.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                # Leaving the block reduces what there is: leave nothing, for peers may not come.
                self._forget_gradients()
                raise
            if self._tied is not None:
                sum_gradient(self._gradient_of(self._tied), self._groups.embedding)
            partial = [self._gradient_of(parameter) for parameter in self._partial]
            sum_partial_gradients(partial, self._groups.tp)
        if sums:
            # Bucket size 0: each flat buffer by itself, so that none is copied into a bucket.
            self._deepspeed.allreduce_gradients(bucket_size=0)

    def _gather_in_float32(self, parameters: list[Parameter]) -> None:
        """ZeRO-2 adds in float32 only what it has reduced; here it is what it will reduce.

        `grad_accum` is the attribute in which the same class keeps float32 sums at stage 1.
        """
        self._zero.use_grad_accum_attribute = True

        def add(parameter: Any, gradient: Tensor) -> None:
            if parameter.grad_accum is None:
                parameter.grad_accum = gradient.float()
            else:
                parameter.grad_accum += gradient

        accumulate_in_float32(parameters, add)

    def _gradient_of(self, parameter: Any) -> Tensor:
        """The local sum of a parameter's gradients, wherever this kind of ZeRO keeps it."""
        if not self._is_bf16:
            gradient = parameter.grad
        elif self._has_float32_sums:
            gradient = parameter._hp_grad
        else:
            gradient = parameter.grad_accum
        assert isinstance(gradient, Tensor)
        return gradient

    def _forget_gradients(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None
            parameter.grad_accum = None  # type: ignore[attr-defined]

    def _whole(self, parameter: Parameter) -> Tensor:
        gathered = nullcontext()
        if self._zero_stage == 3:
            from deepspeed.runtime.zero import GatheredParameters

            gathered = GatheredParameters([parameter])
        with gathered:
            return parameter.detach().to("cpu", torch.float32, copy=True)


class _ModelParallelUnit:
    """The answers that DeepSpeed asks of a model-parallel library.

    Its model-parallel group (tp x pp) carries the gradient norm and the overflow check; its rank
    decides who counts replicated parameters, so it is the tp rank, on every stage.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._alone = dist.new_group([groups.rank], use_local_synchronization=True)

    def _group(self, axis: Axis) -> Any:
        # None would mean all ranks to DeepSpeed.
        return self._alone if axis.group is None else axis.group

    def get_model_parallel_group(self) -> Any:
        return self._group(self._groups.model)

    def get_model_parallel_rank(self) -> int:
        return self._groups.tp.index

    def get_model_parallel_world_size(self) -> int:
        return self._groups.model.size

    def get_tensor_model_parallel_group(self) -> Any:
        return self._group(self._groups.tp)

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.tp.index

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.tp.size

    def get_pipeline_model_parallel_group(self) -> Any:
        return self._group(self._groups.pp)

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._groups.pp.index

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._groups.pp.size

    def get_data_parallel_group(self) -> Any:
        return self._group(self._groups.replicas)

    def get_data_parallel_rank(self) -> int:
        return self._groups.replicas.index

    def get_data_parallel_world_size(self) -> int:
        return self._groups.replicas.size

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self._groups.replicas.ranks)


def _mark_for_zero3_norm(parameters: list[Parameter]) -> None:
    """ZeRO-3's norm reads `model_parallel` only; with it unset, tp rank 0 alone counts.

    A copy whose owner is another rank never sits on tp rank 0, so unset means: not counted.
    """
    for parameter in parameters:
        if getattr(parameter, "ds_pipe_replicated", False):
            parameter.model_parallel = False  # type: ignore[attr-defined]
