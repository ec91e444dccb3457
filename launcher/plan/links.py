"""What communication costs: which link a group of ranks uses, and collectives on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import Hardware
from launcher.plan.mesh import Mesh, crosses_nodes

LINK_EFFICIENCY = 0.8
"""Default share of a link's rate that payload reaches: NCCL's own model caps rings on an A100 node,
whose links carry 300 GB/s, at 235 GB/s (its tuning tables)."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The narrowest link that a group of ranks uses."""

    group_size: int
    crosses_nodes: bool
    bandwidth: float
    """Bytes per second that one rank of the group gets in one direction."""
    latency_s: float
    """Seconds per hop."""
    inner_latency_s: float = 0.0
    """Seconds per hop between ranks of one node, in a group that crosses nodes."""
    num_nodes: int = 1
    """Nodes that the group touches."""


def find_link(mesh: Mesh, axis: str, hardware: Hardware, gpus_per_node: int) -> Link:
    """The link of an axis; of its groups the one that crosses nodes, where any does."""
    size = mesh.sizes[axis]
    groups = mesh.groups(axis) if size > 1 else ()
    crossing = next((group for group in groups if crosses_nodes(group, gpus_per_node)), None)
    num_nodes = len({rank // gpus_per_node for rank in crossing}) if crossing else 1
    return make_link(hardware, size, num_nodes, shares_adapters=axis != "pp")


def stride_link(hardware: Hardware, gpus_per_node: int, stride: int, size: int) -> Link:
    """The link of `size` ranks that are `stride` apart."""
    per_node = min(size, max(1, gpus_per_node // stride))
    return make_link(hardware, size, -(-size // per_node))


def make_link(
    hardware: Hardware, size: int, num_nodes: int, *, shares_adapters: bool = True
) -> Link:
    """What a group of `size` ranks on `num_nodes` nodes gets."""
    node, network = hardware.node, hardware.network
    assert node is not None
    inner = node.bandwidth * node.efficiency
    if num_nodes == 1 or network is None:
        return Link(
            group_size=size, crosses_nodes=num_nodes > 1, bandwidth=inner,
            latency_s=node.latency_s, num_nodes=num_nodes, inner_latency_s=node.latency_s,
        )  # fmt: skip
    # Ranks of the group on the same node share its adapters: a ring leaves the node once, and
    # over as many of them as the group has ranks there.
    rails = max(1, size // num_nodes) if shares_adapters else 1
    return Link(
        group_size=size,
        crosses_nodes=True,
        bandwidth=min(inner, rails * network.bandwidth * network.efficiency),
        latency_s=network.latency_s,
        inner_latency_s=node.latency_s,
        num_nodes=num_nodes,
    )


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


def transfer_s(op: str, payload_bytes: float, link: Link) -> float:
    """Seconds of one operation on `payload_bytes`, the size of the whole (unsharded) tensor."""
    if link.group_size == 1 and op != "send_recv":
        return 0.0
    seconds = sent_bytes(op, payload_bytes, link.group_size) / link.bandwidth
    return seconds + _latency_s(op, link)


def _latency_s(op: str, link: Link) -> float:
    """All-reduce has trees, whose depth is a logarithm (NCCL 2.4); gather and scatter only rings,
    which pass every rank (before NCCL 2.23).
    """
    if op == "send_recv":
        return link.latency_s
    if op == "all_reduce":
        return 2 * max(1, math.ceil(math.log2(link.group_size))) * link.latency_s
    outer = link.num_nodes if link.crosses_nodes else 0
    inner = link.group_size - 1 - outer
    return outer * link.latency_s + max(0, inner) * (link.inner_latency_s or link.latency_s)
