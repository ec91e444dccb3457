"""Mesh arithmetic: ranks and coordinates are one bijection, groups partition the world."""

import itertools

import pytest

from launcher.plan.mesh import Mesh, build_mesh, crosses_nodes
from launcher.plan.records import Layout


def make_layout(**changes: object) -> Layout:
    values: dict[str, object] = {
        "world_size": 16, "nodes": 2, "gpus_per_node": 8, "tp": 2, "cp": 1, "ep": 1, "pp": 2,
        "vpp": 1, "dp": 4, "zero_stage": 1, "micro_batch_size": 1, "num_microbatches": 4,
        "global_batch_size": 16, "sequence_length": 128, "schedule": "1f1b", "recompute": "none",
        "order": ("tp", "cp", "dp", "pp"),
    }  # fmt: skip
    return Layout(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", list(itertools.permutations(("tp", "cp", "dp", "pp"))))
def test_rank_and_coordinates_are_inverse(order):
    mesh = Mesh(order=order, sizes={"tp": 2, "cp": 3, "dp": 4, "pp": 2})
    seen = set()
    for rank in range(mesh.world_size):
        coordinates = mesh.coordinates(rank)
        assert mesh.rank(coordinates) == rank
        seen.add(tuple(sorted(coordinates.items())))
    assert len(seen) == mesh.world_size == 48


def test_first_axis_of_the_order_varies_fastest():
    mesh = build_mesh(make_layout())
    assert mesh.coordinates(1) == {"tp": 1, "cp": 0, "dp": 0, "pp": 0}
    assert mesh.coordinates(2) == {"tp": 0, "cp": 0, "dp": 1, "pp": 0}
    assert mesh.coordinates(8) == {"tp": 0, "cp": 0, "dp": 0, "pp": 1}


def test_groups_of_one_axis_are_the_ones_on_paper():
    mesh = Mesh(order=("tp", "cp", "dp", "pp"), sizes={"tp": 2, "cp": 1, "dp": 2, "pp": 2})
    assert mesh.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert mesh.groups("dp") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert mesh.groups("pp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert mesh.groups("tp", "pp") == ((0, 1, 4, 5), (2, 3, 6, 7))


@pytest.mark.parametrize("axes", [("tp",), ("dp",), ("pp",), ("tp", "pp"), ("dp", "cp"), ()])
@pytest.mark.parametrize("order", [("tp", "cp", "dp", "pp"), ("pp", "dp", "cp", "tp")])
def test_groups_partition_the_world_and_agree_with_group_of(axes, order):
    mesh = Mesh(order=order, sizes={"tp": 2, "cp": 2, "dp": 3, "pp": 2})
    groups = mesh.groups(*axes)
    assert sorted(rank for group in groups for rank in group) == list(range(24))
    for group in groups:
        assert list(group) == sorted(group)
        for rank in group:
            assert mesh.group_of(rank, *axes) == group


def test_ep_is_no_axis_of_ranks():
    mesh = build_mesh(make_layout(ep=4, order=("tp", "ep", "dp", "pp")))
    assert mesh.order == ("tp", "dp", "pp", "cp")
    assert mesh.world_size == 16


def test_a_group_crosses_nodes_when_its_ends_are_on_different_nodes():
    mesh = build_mesh(make_layout())
    assert not crosses_nodes(mesh.group_of(0, "tp"), 8)
    assert not crosses_nodes(mesh.group_of(9, "dp"), 8)
    assert crosses_nodes(mesh.group_of(0, "pp"), 8)
