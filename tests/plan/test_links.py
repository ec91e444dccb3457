"""Links and collectives: which wire, how many bytes, how long."""

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Hardware
from launcher.plan.execution import runtime_job
from launcher.plan.fill import build_layout
from launcher.plan.links import Link, broadcast_s, domain_size, sent_bytes, stride_link, transfer_s
from launcher.plan.mesh import Mesh, expert_groups, expert_part
from launcher.plan.step_time import find_links, place_links
from tests.factory import LLAMA3_70B, h100, make_run

HARDWARE = Hardware.model_validate(h100(num_nodes=8))


RATE = 0.8
"""Share of a link's bandwidth that payload reaches, by default."""


def test_an_axis_inside_the_node_uses_the_node():
    link = stride_link(HARDWARE, 8, stride=1, size=8)
    assert not link.crosses_nodes
    assert link.bandwidth == 450e9 * RATE


def test_an_axis_across_nodes_uses_the_network():
    link = stride_link(HARDWARE, 8, stride=8, size=4)
    assert link.crosses_nodes
    assert link.num_nodes == 4
    assert link.bandwidth == 50e9 * RATE


def test_ranks_of_a_group_on_one_node_share_its_adapters():
    assert stride_link(HARDWARE, 8, stride=2, size=32).bandwidth == 4 * 50e9 * RATE
    assert stride_link(HARDWARE, 8, stride=1, size=64).bandwidth == min(400e9, 450e9) * RATE


def test_no_other_ranks_adapter_carries_what_a_rank_sends_to_all_others():
    whole = 64e9
    inside, across = (stride_link(HARDWARE, 8, stride=1, size=size) for size in (8, 64))
    assert transfer_s("all_to_all", whole, inside) == pytest.approx(
        7 / 8 * whole / (450e9 * RATE), rel=0.01
    )
    assert transfer_s("all_to_all", whole, across) == pytest.approx(
        7 / 8 * whole / (50e9 * RATE), rel=0.01
    )
    gathered_s = 63 / 64 * whole / (450e9 * RATE)  # a ring leaves the node over all eight
    assert transfer_s("all_gather", whole, across) < 2 * gathered_s
    spread = stride_link(HARDWARE, 8, stride=8, size=8)  # one rank on each node
    assert transfer_s("all_to_all", whole, spread) == pytest.approx(
        7 / 8 * whole / (50e9 * RATE), rel=0.01
    )


def test_contention_grows_with_nodes_and_oversubscription_divides():
    busy = HARDWARE.network.model_copy(update={"contention": 0.1, "oversubscription": 2.0})
    hardware = HARDWARE.model_copy(update={"network": busy})
    link = stride_link(hardware, 8, stride=8, size=4)
    assert link.bandwidth == pytest.approx(50e9 * RATE / 2 / 1.2)


def test_the_rank_order_decides_which_axis_crosses():
    run = make_run(model=LLAMA3_70B, hardware=h100(8),
                   parallelism={"tp": 8, "pp": 1, "dp": 8, "order": ["dp", "pp", "cp", "tp"]},
                   train={"global_batch_size": 8, "micro_batch_size": 1, "num_microbatches": 1,
                          "sequence_length": 64})  # fmt: skip
    links = find_links(runtime_job(run, build_layout(run)))
    assert links.tp.crosses_nodes
    assert not links.dp.crosses_nodes


@pytest.mark.parametrize(("op", "sent"), [("all_reduce", 150), ("reduce_scatter", 75),
                                          ("all_gather", 75), ("send_recv", 100)])  # fmt: skip
def test_bytes_sent_by_a_rank_of_four(op, sent):
    assert sent_bytes(op, 100, 4) == sent


def ring(size, **values):
    defaults = {
        "crosses_nodes": False,
        "bandwidth": 1e9,
        "latency_s": 1e-3,
        "inner_latency_s": 1e-3,
    }
    return Link(group_size=size, **defaults | values)


def test_a_transfer_takes_its_bytes_and_its_hops():
    assert transfer_s("all_reduce", 8e9, ring(8)) == pytest.approx(14.0 + 14e-3)
    assert transfer_s("all_gather", 8e9, ring(8)) == pytest.approx(7.0 + 7e-3)
    assert transfer_s("send_recv", 8e9, ring(8)) == pytest.approx(8.0 + 1e-3)


def test_small_all_reduces_across_nodes_take_trees_and_large_ones_rings():
    link = ring(64, crosses_nodes=True, num_nodes=64)
    assert transfer_s("all_reduce", 64.0, link) == pytest.approx(2 * 6 * 1e-3, rel=1e-3)
    assert transfer_s("all_reduce", 64e9, link) == pytest.approx(126.0 + 2 * 64e-3, rel=1e-3)


def test_ll128_is_taken_where_latency_matters():
    fast = {"ll128_latency_s": 1e-4, "inner_ll128_latency_s": 1e-4}
    assert transfer_s("all_gather", 8e3, ring(8, **fast)) == pytest.approx(7e-4, rel=0.02)
    assert transfer_s("all_gather", 8e9, ring(8, **fast)) == transfer_s("all_gather", 8e9, ring(8))


def test_a_broadcast_takes_simple_however_long_its_chain_is():
    fast = {"ll128_latency_s": 1e-4, "inner_ll128_latency_s": 1e-4}
    assert broadcast_s(8e3, ring(8, **fast)) == pytest.approx(8e-6 + 7e-3)


def test_a_group_of_one_costs_nothing():
    assert transfer_s("all_reduce", 8e9, ring(1)) == 0
    assert broadcast_s(8e9, ring(1)) == 0


def with_switch(efficiency):
    node = HARDWARE.node.model_copy(update={"switch_efficiency": efficiency})
    return HARDWARE.model_copy(update={"node": node})


def test_large_sums_inside_a_node_go_through_its_switch_and_small_ones_do_not():
    plain, switched = (stride_link(hardware, 8, 1, 8) for hardware in (HARDWARE, with_switch(0.85)))
    large, small = 2**30, 2**10
    assert transfer_s("all_reduce", large, switched) == pytest.approx(
        25e-6 + large / (450e9 * RATE * 0.85 * 5 / 6)
    )
    assert transfer_s("all_reduce", large, switched) < transfer_s("all_reduce", large, plain)
    assert transfer_s("all_reduce", small, switched) <= transfer_s("all_reduce", small, plain)
    for op in ("all_gather", "reduce_scatter"):  # NCCL's switch algorithms need registered buffers
        assert transfer_s(op, large, switched) == transfer_s(op, large, plain)


def test_the_switch_never_makes_a_sum_across_nodes_slower():
    for size in (16, 64, 512):
        plain, switched = (
            stride_link(hardware, 8, 1, size) for hardware in (HARDWARE, with_switch(0.85))
        )
        for payload in (2**10, 2**20, 2**25, 2**32):
            assert transfer_s("all_reduce", payload, switched) <= transfer_s(
                "all_reduce", payload, plain
            )


def test_a_leaf_switch_is_not_oversubscribed():
    tapered = HARDWARE.network.model_copy(update={"oversubscription": 2.0, "nodes_per_leaf": 4})
    hardware = HARDWARE.model_copy(update={"network": tapered})
    inside, beyond = (stride_link(hardware, 8, stride=8, size=nodes) for nodes in (4, 8))
    assert inside.bandwidth == pytest.approx(50e9 * RATE)
    assert beyond.bandwidth == pytest.approx(50e9 * RATE / 2)


def test_devices_under_one_switch_are_one_node_to_collectives():
    node = HARDWARE.node.model_copy(update={"domain_gpus": 32})
    hardware = HARDWARE.model_copy(update={"node": node})
    assert not stride_link(hardware, 8, stride=1, size=32).crosses_nodes
    assert stride_link(hardware, 8, stride=1, size=64).num_nodes == 2


@pytest.mark.parametrize(
    ("trays", "room"), [(16, 72), (18, 72), (32, 64), (36, 72), (64, 64), (19, 72), (20, 72)]
)
def test_a_job_takes_as_many_devices_of_each_rack(trays, room):
    node = HARDWARE.node.model_copy(update={"domain_gpus": 72})
    hardware = HARDWARE.model_copy(update={"node": node, "num_nodes": trays})
    assert domain_size(hardware, 4) == room
    if trays % 16 == 0:
        assert not stride_link(hardware, 4, stride=1, size=64).crosses_nodes


@pytest.mark.parametrize("per_node", [1, 4, 6, 8, 12])
@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_a_link_is_that_of_the_group_that_touches_most_nodes(per_node, nodes):
    """Four ranks on nodes of six: the second group of them lies on two nodes."""
    hardware = Hardware.model_validate(h100(nodes, per_node))
    world = nodes * per_node
    for stride, size in product(range(1, world + 1), range(2, world + 1)):
        if world % (stride * size):
            continue
        begins = [
            block + rank for block in range(0, world, stride * size) for rank in range(stride)
        ]
        touched = max(
            len({(begin + stride * place) // per_node for place in range(size)}) for begin in begins
        )
        link = stride_link(hardware, per_node, stride, size)
        assert (link.num_nodes, link.crosses_nodes) == (touched, touched > 1), (stride, size)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_groups_lie_on_as_many_nodes_as_their_ranks_say(data):
    """Of every axis, of replicas, and of ranks that share experts, the group that lies worst."""

    def draw(*values):
        return data.draw(st.sampled_from(values))

    per_node = draw(1, 2, 3, 4, 6, 8)
    sizes = {"tp": draw(1, 2, 4), "cp": draw(1, 2, 3, 4), "dp": draw(1, 2, 4, 6, 8),
             "pp": draw(1, 2, 3, 4)}  # fmt: skip
    order = tuple(data.draw(st.permutations(("tp", "cp", "dp", "pp"))))
    world = math.prod(sizes.values())
    if world % per_node:
        return
    ep = draw(*[one for one in (1, 2, 4, 8) if sizes["dp"] * sizes["cp"] % one == 0])
    hardware = HARDWARE.model_copy(
        update={"num_nodes": world // per_node, "gpus_per_node": per_node}
    )
    degrees = (sizes["tp"], sizes["cp"], ep, sizes["dp"], sizes["pp"])
    links = place_links(hardware, per_node, degrees, order, None)
    mesh = Mesh(order=order, sizes=sizes)

    def worst(groups):
        return max(len({rank // per_node for rank in group}) for group in groups)

    assert links.tp.num_nodes == worst(mesh.groups("tp"))
    assert links.cp.num_nodes == worst(mesh.groups("cp"))
    assert links.dp.num_nodes == worst(mesh.groups("cp", "dp"))
    if ep > 1 and all(one & (one - 1) == 0 for one in sizes.values()):
        groups = expert_groups(mesh, ep)
        assert links.ep.num_nodes == worst(groups)
        parts = {rank: expert_part(mesh, rank, ep) for rank in range(world)}
        alike = [[rank for rank in range(world) if parts[rank] == part
                  and mesh.coordinates(rank)["pp"] == stage]
                 for part in range(ep) for stage in range(sizes["pp"])]  # fmt: skip
        assert links.expert_dp.group_size == len(alike[0])
        assert links.expert_dp.num_nodes == worst(alike)
