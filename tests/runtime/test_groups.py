"""Process groups: each axis joins the ranks that its name says, on every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.plan.mesh import build_mesh
from launcher.runtime.groups import build_groups
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import make_layout

AXES = ("tp", "pp", "dp", "model", "embedding", "kv")
Seen = dict[str, tuple[int, tuple[int, ...], float]]


def look(rank: int, sizes: dict[str, Any], kv_heads: int | None) -> Seen:
    """Per axis: my index, its ranks, and the sum of all its ranks' numbers as it was sent."""
    layout = make_layout(**sizes)
    device = torch.device("cpu")
    groups = build_groups(layout, build_mesh(layout), device, tied=True, kv_heads=kv_heads)
    seen: Seen = {}
    for name in AXES:
        axis = getattr(groups, name)
        if axis is None:
            continue
        assert (axis.group is None) == (axis.size == 1)
        total = torch.tensor(float(rank))
        if axis.group is not None:
            dist.all_reduce(total, group=axis.group)
        seen[name] = (axis.index, axis.ranks, total.item())
    return seen


CASES = [
    ({"tp": 2, "pp": 2, "dp": 2}, None),
    ({"tp": 4, "dp": 2}, 2),
    ({"tp": 2, "pp": 4}, 1),
    ({"tp": 2, "pp": 2, "dp": 2, "order": ("pp", "dp", "tp", "cp")}, 1),
]


@pytest.mark.parametrize(("sizes", "kv_heads"), CASES)
def test_sums_over_an_axis_are_those_of_its_ranks(
    sizes: dict[str, Any], kv_heads: int | None
) -> None:
    layout = make_layout(**sizes)
    mesh = build_mesh(layout)
    for rank, seen in enumerate(run_ranks(layout.world_size, look, sizes, kv_heads)):
        here = mesh.coordinates(rank)
        for name, (index, ranks, total) in seen.items():
            assert ranks[index] == rank
            assert total == sum(ranks)
            if name in here:
                assert index == here[name]
                assert ranks == mesh.group_of(rank, name)
        assert ("kv" in seen) == (kv_heads is not None and layout.tp > kv_heads)
        is_end = layout.pp > 1 and here["pp"] in (0, layout.pp - 1)
        assert ("embedding" in seen) == is_end


def test_sharers_of_a_kv_head_are_neighbours_on_the_tp_axis() -> None:
    ranks = [seen["kv"][1] for seen in run_ranks(4, look, {"tp": 4}, 2)]
    assert ranks == [(0, 1), (0, 1), (2, 3), (2, 3)]


def test_one_process_needs_no_process_group() -> None:
    assert not dist.is_initialized()
    assert look(0, {}, 2) == dict.fromkeys(("tp", "pp", "dp", "model"), (0, (0,), 0.0))
