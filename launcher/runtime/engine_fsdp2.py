"""PyTorch's FSDP2 (`fully_shard`) as a data-parallel engine for one stage of the model.

Every block, the embedding and the head are groups that are gathered and reduced together; each
rank keeps rows of every parameter in float32, which are the masters that the optimizer updates.
What `zero_stage` says is when groups are gathered and gradients reduced:

- 1: gathered once per step; gradients add up whole and are reduced after the last microbatch.
- 2: gathered once per step; each backward reduces its gradients (under a pipeline as 1, because a
  reduction for every microbatch would multiply the traffic).
- 3: gathered for every forward and again for every backward, which reduces its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from launcher.config.schema import Run
from launcher.plan.records import Layout
from launcher.plan.traffic import gradients_are_whole
from launcher.runtime.gradients import (
    global_norm,
    partial_over_tp,
    sum_gradient,
    sum_partial_gradients,
)
from launcher.runtime.groups import Axis, Groups
from launcher.runtime.model.stage import StageModule, tied_parameter
from launcher.runtime.optimizer import build_optimizer, set_learning_rate
from launcher.runtime.state import (
    StatePiece,
    held_kinds,
    prepare_optimizer_state,
    set_optimizer_step,
    shard_of,
    shard_pieces,
)

MARKS = ("shard", "model_parallel", "ds_pipe_replicated", "is_partial_over_tp")
"""What a stage's parameters carry (`model/initial.py`) and a new parameter must take over."""


class Fsdp2Engine:
    """ZeRO stages 1 to 3 by PyTorch. See `Engine` for the methods."""

    def __init__(self, module: nn.Module, run: Run, layout: Layout, groups: Groups) -> None:
        assert isinstance(module, StageModule)
        self.module = module
        self._groups = groups
        self._clip_norm = run.optimizer.clip_grad_norm
        self._num_expected = layout.num_microbatches * layout.vpp
        self._num_backwards = 0
        self._loss_share = torch.tensor(1.0 / layout.num_microbatches, device=groups.device)
        tied = tied_parameter(module)
        tied_name = next((n for n, p in module.named_parameters() if p is tied), None)
        # 1. Rows of every parameter instead of the whole, group by group.
        policy = MixedPrecisionPolicy()
        if run.precision.compute == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        marks = _shard_stage(module, _build_mesh(groups), policy, layout.zero_stage == 3)
        self._sharded = {name: _as_dtensor(p) for name, p in module.named_parameters()}
        # 2. The same rows as plain tensors: for them an update costs no dispatch.
        self._rows = {name: Parameter(p.to_local().detach()) for name, p in self._sharded.items()}
        for name, rows in self._rows.items():
            _set_marks(rows, marks[name])
            _set_marks(self._sharded[name], marks[name])
        self._tied = None if tied_name is None else self._rows[tied_name]
        self._partial = partial_over_tp(self._rows.values())
        self._optimizer = build_optimizer(self._rows.values(), run.optimizer)
        # 3. What is put off to the last microbatch of a step.
        self._root: FSDPModule = module
        self._gathers_once = layout.zero_stage < 3
        self._reduces_once = gradients_are_whole(layout)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        """See `Engine`."""
        return self.module(x, context)  # type: ignore[no-any-return]

    def backward(self, output: Tensor | GradientEdge, gradient: Tensor | None) -> None:
        """See `Engine`."""
        self._num_backwards += 1
        if self._num_backwards == self._num_expected:
            self._put_off(False)
        torch.autograd.backward(output, self._loss_share if gradient is None else gradient)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """See `Engine`."""
        self._num_backwards = 0
        self._put_off(True)
        yield
        assert self._num_backwards == self._num_expected
        for name, sharded in self._sharded.items():
            self._rows[name].grad = _local_gradient(sharded)
        if self._tied is not None:
            # Both stages cut the table alike, so the rows of one dp rank meet each other.
            assert self._tied.grad is not None
            sum_gradient(self._tied.grad, self._groups.embedding)
        partial = [row.grad for row in self._partial if row.grad is not None]
        sum_partial_gradients(partial, self._groups.tp)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        rows = list(self._rows.values())
        gradients = [row.grad for row in rows if row.grad is not None]
        norm = global_norm(rows, gradients, self._groups, is_cut_over_dp=True)
        if self._clip_norm is not None:
            factor = (self._clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for sharded in self._sharded.values():
            sharded.grad = None
        return float(norm)

    def gradients(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {
            name: _whole(_like(sharded, _local_gradient(sharded)))
            for name, sharded in self._sharded.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return {name: _whole(sharded) for name, sharded in self._sharded.items()}

    def state(self) -> list[StatePiece]:
        """See `Engine`. Rows are on one dp rank only."""
        prepare_optimizer_state(self._optimizer, self._rows.values())
        kinds = held_kinds(self._optimizer)
        pieces: list[StatePiece] = []
        for name, rows in self._rows.items():
            local_shape = tuple(self._sharded[name].shape)
            start = _first_row(local_shape[0], self._groups.replicas) * math.prod(local_shape[1:])
            live = {"weight": rows.detach()}
            live |= {kind: self._optimizer.state[rows][key] for kind, key in kinds}
            for kind, values in live.items():
                if values.numel():
                    pieces += shard_pieces(
                        kind, shard_of(rows), local_shape, values.view(-1), start
                    )
        return pieces

    def state_loaded(self, step: int) -> None:
        """See `Engine`."""
        set_optimizer_step(self._optimizer, step)
        # What a validation may have left gathered is old now.
        for child in self.module.modules():
            if isinstance(child, FSDPModule):
                child.reshard()

    def _put_off(self, is_on: bool) -> None:
        """Until the last backward: keep what is gathered, gradients to add up, prefetch orders."""
        self._root.set_is_last_backward(not is_on)
        if self._gathers_once:
            self._root.set_reshard_after_backward(not is_on)
        if self._reduces_once:
            self._root.set_requires_gradient_sync(not is_on)


def _shard_stage(
    module: StageModule, mesh: DeviceMesh, policy: MixedPrecisionPolicy, regathers: bool
) -> dict[str, dict[str, Any]]:
    """Make groups of the stage's parts, in place, one after the other: fill, then keep own rows.

    No rank ever holds more than one group whole. Returns the parameters' marks by name.
    """
    marks: dict[str, dict[str, Any]] = {}

    def make_group(*paths: str, reshards: bool) -> Any:
        for path in paths:
            module.fill(f"{path}." if path else "")
        parts = [module.get_submodule(path) for path in paths]
        for name, parameter in module.named_parameters():
            if hasattr(parameter, "shard") and not isinstance(parameter, DTensor):
                marks[name] = {
                    mark: getattr(parameter, mark) for mark in MARKS if hasattr(parameter, mark)
                }
                # The masters' type; buffers stay in the compute type.
                parameter.data = parameter.data.float()
        group: Any = parts[0] if len(parts) == 1 else parts
        fully_shard(group, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards)
        return parts[-1]

    first: list[Any] = []
    last: list[Any] = []
    if module.is_first and not (module.is_tied and module.is_last):
        first = [make_group("embedding", reshards=regathers)]
        first[0].set_unshard_in_backward(False)  # a lookup's backward reads no weight
    blocks = {layer: make_group(f"layers.{layer}", reshards=regathers) for layer in module.layers}
    if module.is_last and not (module.is_tied and module.is_first):
        # Backward begins where forward ends: gathering the head again would be in vain.
        last = [make_group("final_norm", "head", reshards=False)]
    # What is left: embedding and head that share a table.
    root = make_group("", reshards=False)
    for piece in module.pieces:
        order = [blocks[str(layer)] for layer in range(piece.first_layer, piece.end_layer)]
        _gather_ahead(first * piece.is_first + order + (last or [root]) * piece.is_last)
    return marks


def _gather_ahead(order: list[Any]) -> None:
    """In backward, gather each group while the one behind it computes.

    FSDP2's own guess follows the order of forwards, which with several microbatches under way
    names the wrong group. The first names itself, which does nothing: no name would mean a guess.
    """
    for group, before in zip(order, order[:1] + order[:-1], strict=True):
        group.set_modules_to_backward_prefetch([before])


def _build_mesh(groups: Groups) -> DeviceMesh:
    """The dp ranks as a mesh; alone, a group of one."""
    if not dist.is_initialized():
        assert groups.world_size == 1
        backend = "nccl" if groups.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = groups.replicas.group
    if group is None:
        group = dist.new_group([groups.rank], use_local_synchronization=True)
    return DeviceMesh.from_group(group, groups.device.type, mesh_dim_names=("dp",))


def _set_marks(parameter: Any, marks: dict[str, Any]) -> None:
    for mark, value in marks.items():
        setattr(parameter, mark, value)


def _first_row(num_rows: int, dp: Axis) -> int:
    """Where a dp rank's rows begin: all ranks but the last with any have equally many."""
    return min(num_rows, -(-num_rows // dp.size) * dp.index)


def _as_dtensor(parameter: Parameter) -> Any:
    assert isinstance(parameter, DTensor)
    return parameter


def _local_gradient(sharded: Any) -> Tensor:
    """Its own rows of the averaged gradient; zeros for a parameter that took no part."""
    if sharded.grad is None:
        return torch.zeros_like(sharded.to_local())
    return sharded.grad.to_local()  # type: ignore[no-any-return]


def _like(sharded: Any, rows: Tensor) -> Any:
    """Rows cut as another tensor is cut."""
    return DTensor.from_local(
        rows, sharded.device_mesh, sharded.placements, run_check=False,
        shape=sharded.shape, stride=sharded.stride(),
    )  # fmt: skip


def _whole(sharded: Any) -> Tensor:
    return sharded.full_tensor().detach().to("cpu", torch.float32, copy=True)  # type: ignore[no-any-return]
