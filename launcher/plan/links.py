"""What communication costs: which link a group of ranks uses, and collectives on it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, get_args

from launcher.config.hardware_schema import ExchangeKind, MeasuredKernel
from launcher.config.schema import Hardware, Node
from launcher.plan.measured_kernels import correct
from launcher.plan.rank_groups import Digits, most_nodes


class Link(NamedTuple):
    """The narrowest link that a group of ranks uses."""

    group_size: int
    crosses_nodes: bool
    bandwidth: float
    """Bytes per second that one rank of the group gets in one direction."""
    latency_s: float
    """Seconds per hop."""
    inner_latency_s: float
    """Seconds per hop between ranks of one node."""
    ll128_latency_s: float | None = None
    """The same two for NCCL's LL128 protocol; None: there is none."""
    inner_ll128_latency_s: float | None = None
    num_nodes: int = 1
    """Nodes that the group touches."""
    adapter_bandwidth: float = math.inf
    """Bytes per second that one rank sends to other nodes by itself."""
    switch_bandwidth: float | None = None
    """Bytes per second of a whole that the node's switch adds up (NVLS); None: it cannot."""
    measured: tuple[MeasuredKernel, ...] = ()
    """Exchanges that were measured inside such a node."""
    inside: Link | None = None
    """Of a group that leaves its node, where exchanges were measured: the same in one node."""


def stride_link(hardware: Hardware, gpus_per_node: int, stride: int, size: int) -> Link:
    """The link of `size` ranks that are `stride` apart, of the group that lies worst."""
    return group_link(hardware, gpus_per_node, ((stride, size),))


@lru_cache(maxsize=4096)
def group_link(hardware: Hardware, gpus_per_node: int, digits: Digits) -> Link:
    """The same of any group of ranks."""
    room, world = domain_size(hardware, gpus_per_node), gpus_per_node * hardware.num_nodes
    size = math.prod([one for _, one in digits])
    return make_link(hardware, size, most_nodes(digits, room, world))


def domain_size(hardware: Hardware, gpus_per_node: int) -> int:
    """Ranks that reach each other without the network: of a node, or of all under one switch.

    A job on several racks takes as many devices of each, where that leaves few idle: 256 are
    four times 64 of 72, so that groups of 64 do not lie across two racks.
    """
    assert hardware.node is not None
    room = max(gpus_per_node, hardware.node.domain_gpus or 1)
    world = gpus_per_node * hardware.num_nodes
    if world <= room:
        return room
    alike = [size for size in range(gpus_per_node, room + 1, gpus_per_node) if world % size == 0]
    return alike[-1] if alike[-1] >= LEAST_TAKEN * room else room


LEAST_TAKEN = 0.75
"""Of a rack's devices; assumed: a job that would take fewer of each fills racks instead."""


def make_link(
    hardware: Hardware, size: int, num_nodes: int, *, shares_adapters: bool = True
) -> Link:
    """What a group of `size` ranks on `num_nodes` nodes gets."""
    node, network = hardware.node, hardware.network
    assert node is not None
    inner, measured = node.bandwidth * node.efficiency, _measured(hardware)
    if num_nodes == 1 or network is None:
        return Link(
            group_size=size, crosses_nodes=num_nodes > 1, bandwidth=inner,
            latency_s=node.latency_s, num_nodes=num_nodes, inner_latency_s=node.latency_s,
            ll128_latency_s=node.ll128_latency_s, inner_ll128_latency_s=node.ll128_latency_s,
            switch_bandwidth=switch_bandwidth(node),
            measured=measured if num_nodes == 1 else (),
        )  # fmt: skip
    # Ranks of the group on the same node share its adapters: a ring leaves the node once, and
    # over as many of them as the group has ranks there.
    rails = max(1, size // num_nodes) if shares_adapters else 1
    outer = rails * network.bandwidth * network.efficiency
    if num_nodes > (network.nodes_per_leaf or 1):  # some of it passes the upper switches
        outer /= network.oversubscription
    if shares_adapters:  # flows of a collective meet in the switches; a pair of stages has its own
        outer /= 1 + network.contention * math.log2(num_nodes)
    return Link(
        group_size=size,
        crosses_nodes=True,
        bandwidth=min(inner, outer),
        latency_s=network.latency_s,
        inner_latency_s=node.latency_s,
        ll128_latency_s=network.ll128_latency_s,
        inner_ll128_latency_s=node.ll128_latency_s,
        num_nodes=num_nodes,
        adapter_bandwidth=outer / rails,
        switch_bandwidth=switch_bandwidth(node),
        inside=make_link(hardware, size, 1) if measured else None,
    )


def _measured(hardware: Hardware) -> tuple[MeasuredKernel, ...]:
    """What `launch calibrate` found of exchanges; a group of one exchanges nothing."""
    kernels = hardware.gpu.kernels if hardware.gpu else ()
    return tuple(one for one in kernels if one.kind in get_args(ExchangeKind) and one.n > 1)


NVLS_SHARE = 5 / 6
"""Of the switch's bandwidth that becomes bytes of the whole (NCCL, tuning.cc: ratio of NVLS)."""

NVLS_TREE_SHARE = 0.7
"""The same of the network's, per half of a ring's steps between nodes (NCCL, tuning.cc)."""

NVLS_S, NVLS_NET_S = 25e-6, 20.9e-6
"""Latency inside a node, and of a hop of its tree between nodes (NCCL, tuning.cc: hwLat)."""


def switch_bandwidth(node: Node) -> float | None:
    """Bytes per second of an all-reduce's whole, where the node's switch adds up."""
    if node.switch_efficiency is None:
        return None
    return node.bandwidth * node.efficiency * node.switch_efficiency * NVLS_SHARE


def sent_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """What one rank sends: rings pass (n - 1) / n of the whole once, all-reduce twice."""
    around = (group_size - 1) / group_size
    factor = {
        "all_reduce": 2 * around,
        "reduce_scatter": around,
        "all_gather": around,
        "all_to_all": around,
    }
    return payload_bytes * factor.get(op, 1.0)


@lru_cache(maxsize=65536)
def transfer_s(op: str, payload_bytes: float, link: Link) -> float:
    """Seconds of one operation on `payload_bytes`, the size of the whole (unsharded) tensor:
    modelled, and corrected by what was measured near its size.

    A group that leaves its node passes the node's links, too: it takes no less than one inside.
    """
    modelled_s = _model_s(op, payload_bytes, link)
    if link.inside is not None:
        return max(modelled_s, transfer_s(op, payload_bytes, link.inside))
    if not link.measured or not modelled_s:
        return modelled_s

    def model(one: MeasuredKernel) -> float:
        return _model_s(op, one.m, link._replace(group_size=one.n))

    # A message has two ends, however many stages there are.
    size = (max(1, round(payload_bytes)), 2 if op == "send_recv" else link.group_size, 0)
    return correct(modelled_s, op, None, size, link.measured, model)


def _model_s(op: str, payload_bytes: float, link: Link) -> float:
    """The fastest of the algorithms and protocols that NCCL chooses from by such a sum of its own
    (tuning.cc): rings for everything; for all-reduce trees across nodes and, where switches add
    up, NVLS inside a node and NVLSTree across. An all-reduce's ring is a reduce-scatter and an
    all-gather, inside nodes at their rate, between them over every adapter of the group's ranks.
    """
    if op == "send_recv":
        return link.latency_s + payload_bytes / link.bandwidth
    if link.group_size == 1:
        return 0.0
    seconds = sent_bytes(op, payload_bytes, link.group_size) / link.bandwidth
    if op == "all_to_all":
        seconds = max(seconds, _sent_abroad(payload_bytes, link) / link.adapter_bandwidth)
    outer, inner = _ring_hops(link)
    rounds = 2 if op == "all_reduce" else 1
    found = _fastest_s(seconds, rounds * outer, rounds * inner, link)
    if op == "all_reduce" and link.crosses_nodes:
        depth, chain = math.ceil(math.log2(link.num_nodes)), link.group_size // link.num_nodes - 1
        found = min(found, _fastest_s(seconds / TREE_SHARE, 2 * depth, 2 * chain, link))
    if op == "all_reduce" and link.switch_bandwidth is not None:
        found = min(found, _switched_s(payload_bytes, link, link.switch_bandwidth))
    return found


def _sent_abroad(payload_bytes: float, link: Link) -> float:
    """Of what a rank sends to every other one, bytes to those on other nodes: no other rank's
    adapter carries them, as those of a ring do.
    """
    return payload_bytes * (1 - 1 / link.num_nodes)


def _switched_s(payload_bytes: float, link: Link, switch: float) -> float:
    """Added up in the node's switch, and between nodes along a tree of nodes (NVLS, NVLSTree)."""
    inside_s = payload_bytes / switch
    if not link.crosses_nodes:
        return NVLS_S + inside_s
    nodes = link.num_nodes
    if link.group_size // nodes == 1:
        return math.inf
    around = NVLS_TREE_SHARE * nodes / (2 * (nodes - 1))
    hops_s = NVLS_S + 2 * math.ceil(math.log2(nodes)) * NVLS_NET_S
    return hops_s + max(inside_s, payload_bytes / (around * link.bandwidth))


def broadcast_s(payload_bytes: float, link: Link) -> float:
    """From one rank to all others along a chain, or a sum the other way.

    NCCL picks the protocol as if the chain had one hop (tuning.cc: `sameChannels`), and so Simple,
    whose bandwidth is the highest, however long the chain is.
    """
    if link.group_size == 1:
        return 0.0
    outer, inner = _ring_hops(link)
    hops_s = outer * link.latency_s + inner * link.inner_latency_s
    return payload_bytes / link.bandwidth + hops_s


TREE_SHARE = 0.92
"""Share of a ring's bandwidth that trees reach (NCCL, tuning.cc)."""

LL128_SHARE = 120 / 128
"""Of every 128 bytes that LL128 sends, 8 are a flag."""


def _ring_hops(link: Link) -> tuple[int, int]:
    """Hops between nodes and inside them that a message makes to pass every rank."""
    outer = link.num_nodes if link.crosses_nodes else 0
    return outer, max(0, link.group_size - 1 - outer)


def _fastest_s(seconds: float, outer: int, inner: int, link: Link) -> float:
    found = seconds + outer * link.latency_s + inner * link.inner_latency_s
    if link.ll128_latency_s is not None and link.inner_ll128_latency_s is not None:
        hops_s = outer * link.ll128_latency_s + inner * link.inner_ll128_latency_s
        found = min(found, seconds / LL128_SHARE + hops_s)
    return found
