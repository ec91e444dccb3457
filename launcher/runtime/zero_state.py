"""Where DeepSpeed's ZeRO keeps the float32 state of a rank (0.19.8): flat parts of parameters.

Stages 1 and 2, and BF16_Optimizer, map every parameter that a rank owns a part of to its place in
a flat partition (`_hp_mapping`); stage 3 has `grad_position` for the same. Its own functions for
the purpose (`safe_get_local_*`) return copies on some devices and know stage 3 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.runtime.state import (
    StatePiece,
    held_kinds,
    prepare_optimizer_state,
    set_optimizer_step,
    shard_of,
    shard_pieces,
)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The part of one local parameter that this rank owns."""

    partition: Tensor
    """The flat float32 partition that it lies in."""
    position: int
    """First element in the partition."""
    start: int
    """First element of the local parameter."""
    size: int


def zero_pieces(zero: Any, module: nn.Module, stage: int) -> list[StatePiece]:
    """The pieces of this rank; ranks of the dp group have others, so all are its own to save."""
    optimizer = zero.optimizer
    prepare_optimizer_state(optimizer, _partitions(zero, stage))
    kinds = held_kinds(optimizer)
    pieces: list[StatePiece] = []
    for parameter in module.parameters():
        fragment = _fragment_of(zero, parameter, stage)
        if fragment is None:
            continue
        shape = tuple(parameter.ds_shape if stage == 3 else parameter.shape)  # type: ignore[attr-defined]
        state = optimizer.state[fragment.partition]
        live = {"weight": fragment.partition.detach()}
        live |= {kind: state[key] for kind, key in kinds}
        for kind, flat in live.items():
            values = flat.narrow(0, fragment.position, fragment.size)
            pieces += shard_pieces(kind, shard_of(parameter), shape, values, fragment.start)
    return pieces


@torch.no_grad()
def take_over(zero: Any, stage: int, step: int) -> None:
    """Give the float32 weights to the compute weights of all ranks, and set the step."""
    prepare_optimizer_state(zero.optimizer, _partitions(zero, stage))
    set_optimizer_step(zero.optimizer, step)
    if stage < 3:
        zero.update_lp_params()
        return
    # Parameters that stay gathered would keep their old values: apart, update, together again.
    zero.checkpoint_event_prologue()
    for number in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(number)
    zero.checkpoint_event_epilogue()


def _partitions(zero: Any, stage: int) -> Iterator[Tensor]:
    """All flat float32 partitions of this rank."""
    for name in ("fp32_partitioned_groups_flat",) if stage == 3 else _FLAT_NAMES:
        if hasattr(zero, name):
            yield from getattr(zero, name)


_FLAT_NAMES = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""Of stages 1 and 2, and of BF16_Optimizer."""


def _fragment_of(zero: Any, parameter: Any, stage: int) -> Fragment | None:
    if stage == 3:
        group, position, size = zero.grad_position[zero.get_param_id(parameter)]
        start = dist.get_rank(zero._get_param_partition_group(parameter)) * size
        real = min(size, parameter.ds_numel - start)  # the last ranks' parts end in padding
        if real <= 0:
            return None
        partition = zero.fp32_partitioned_groups_flat[group]
        return Fragment(partition=partition, position=position, start=start, size=real)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Fragment(
        partition=list(_partitions(zero, stage))[mapping.param_group_index],
        position=mapping.hp_fragment_address.start,
        start=mapping.lp_fragment_address.start,
        size=mapping.hp_fragment_address.numel,
    )
