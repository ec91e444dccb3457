"""Links and collectives: which wire, how many bytes, how long."""

import pytest

from launcher.config.schema import Hardware
from launcher.plan.links import LINK_EFFICIENCY, Link, find_link, sent_bytes, transfer_s
from launcher.plan.mesh import Mesh
from tests.factory import h100

HARDWARE = Hardware.model_validate(h100(num_nodes=8))


def mesh(tp, dp, pp, order=("tp", "cp", "dp", "pp")):
    return Mesh(order=order, sizes={"tp": tp, "cp": 1, "dp": dp, "pp": pp})


def test_an_axis_inside_the_node_uses_the_node():
    link = find_link(mesh(8, 4, 2), "tp", HARDWARE, 8)
    assert not link.crosses_nodes
    assert link.bandwidth == 450e9 * LINK_EFFICIENCY


def test_an_axis_across_nodes_uses_the_network():
    link = find_link(mesh(8, 4, 2), "dp", HARDWARE, 8)
    assert link.crosses_nodes
    assert link.bandwidth == 50e9 * LINK_EFFICIENCY


def test_ranks_of_a_group_on_one_node_share_its_adapters():
    link = find_link(mesh(2, 32, 1), "dp", HARDWARE, 8)
    assert link.bandwidth == 4 * 50e9 * LINK_EFFICIENCY
    whole_nodes = find_link(mesh(1, 64, 1), "dp", HARDWARE, 8)
    assert whole_nodes.bandwidth == 400e9 * LINK_EFFICIENCY


def test_the_rank_order_decides_which_axis_crosses():
    swapped = mesh(8, 4, 2, order=("dp", "pp", "cp", "tp"))
    assert find_link(swapped, "tp", HARDWARE, 8).crosses_nodes
    assert not find_link(swapped, "dp", HARDWARE, 8).crosses_nodes


@pytest.mark.parametrize(("op", "sent"), [("all_reduce", 150), ("reduce_scatter", 75),
                                          ("all_gather", 75), ("send_recv", 100)])  # fmt: skip
def test_bytes_sent_by_a_rank_of_four(op, sent):
    assert sent_bytes(op, 100, 4) == sent


def test_a_transfer_takes_its_bytes_and_its_hops():
    link = Link(group_size=8, crosses_nodes=False, bandwidth=1e9, latency_s=1e-3)
    assert transfer_s("all_reduce", 8e9, link) == pytest.approx(14.0 + 6e-3)
    # Gathers are rings, which pass all other ranks; only all-reduce has trees.
    assert transfer_s("all_gather", 8e9, link) == pytest.approx(7.0 + 7e-3)
    assert transfer_s("send_recv", 8e9, link) == pytest.approx(8.0 + 1e-3)


def test_a_group_of_one_costs_nothing():
    link = Link(group_size=1, crosses_nodes=False, bandwidth=1e9, latency_s=1e-3)
    assert transfer_s("all_reduce", 8e9, link) == 0
