"""Which process groups a rank belongs to: one frozen value that is passed by argument."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from launcher.plan.mesh import Mesh
from launcher.plan.records import Layout


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One group of ranks, seen from a rank inside it."""

    name: str
    """tp, cp, pp, dp, replicas (dp x cp), model (tp x pp), embedding or kv."""
    index: int
    """Position of this rank in `ranks`."""
    size: int
    ranks: tuple[int, ...]
    """Global ranks, sorted: `index` counts along the axis."""
    group: dist.ProcessGroup | None
    """None where the group has one rank: nothing is ever sent then."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Every group of one rank."""

    rank: int
    world_size: int
    device: torch.device
    """Where this rank computes."""
    tp: Axis
    cp: Axis
    """Ranks that share each sequence."""
    pp: Axis
    dp: Axis
    """Ranks that train on different samples."""
    replicas: Axis
    """dp x cp: ranks that hold the same part of the model and see other tokens. Gradients are
    averaged, and ZeRO shards, over all of them."""
    model: Axis
    """tp x pp: the ranks that together hold one replica of the model."""
    embedding: Axis | None = None
    """First and last stage, whose copies of a tied embedding share one gradient; else None."""
    kv: Axis | None = None
    """tp ranks that hold copies of one key/value head; None where kv heads are not replicated."""


def build_groups(
    layout: Layout,
    mesh: Mesh,
    device: torch.device,
    tied: bool,
    kv_heads: int | None = None,
) -> Groups:
    """All groups of this rank; every rank must call it, at the same place.

    With one process nothing of torch.distributed is touched. Each kind of group partitions the
    ranks and every rank goes through the kinds in the same order, so creation by members only
    (`use_local_synchronization`) cannot deadlock, and its cost does not grow with the job. The
    name of such a group holds how many groups its rank has made before (torch 2.13,
    `_hash_ranks_to_str`): all ranks must make equally many, or members wait for different names.
    """
    assert layout.world_size == mesh.world_size
    rank = dist.get_rank() if layout.world_size > 1 else 0
    coordinates = mesh.coordinates(rank)
    members = {
        "tp": mesh.group_of(rank, "tp"),
        "cp": mesh.group_of(rank, "cp"),
        "pp": mesh.group_of(rank, "pp"),
        "dp": mesh.group_of(rank, "dp"),
        "replicas": mesh.group_of(rank, "dp", "cp"),
        "model": mesh.group_of(rank, "tp", "pp"),
    }
    if kv_heads is not None and layout.tp > kv_heads:
        members["kv"] = _sharers(members["tp"], coordinates["tp"], layout.tp // kv_heads)
    is_between = layout.pp > 1 and coordinates["pp"] not in (0, layout.pp - 1)
    if tied and layout.pp > 1 and not is_between:
        members["embedding"] = (members["pp"][0], members["pp"][-1])
    made: dict[tuple[int, ...], dist.ProcessGroup] = {}
    axes = {name: _build_axis(name, ranks, rank, made) for name, ranks in members.items()}
    if tied and is_between:
        dist.new_group([rank], use_local_synchronization=True)  # to have made as many
    return Groups(rank=rank, world_size=layout.world_size, device=device, **axes)


def _sharers(tp_ranks: tuple[int, ...], index: int, num_sharers: int) -> tuple[int, ...]:
    """Neighbours on the tp axis that hold the same kv head."""
    start = index - index % num_sharers
    return tp_ranks[start : start + num_sharers]


def _build_axis(
    name: str, ranks: tuple[int, ...], rank: int, made: dict[tuple[int, ...], dist.ProcessGroup]
) -> Axis:
    """The axis with its group; kinds with the same members (tp and model at pp=1) share one."""
    if len(ranks) > 1 and ranks not in made:
        group = dist.new_group(list(ranks), use_local_synchronization=True)
        assert isinstance(group, dist.ProcessGroup)
        made[ranks] = group
    return Axis(
        name=name,
        index=ranks.index(rank),
        size=len(ranks),
        ranks=ranks,
        group=made.get(ranks),
    )
