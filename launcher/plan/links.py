"""What communication costs: which link a group of ranks uses, and collectives on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import Hardware
from launcher.plan.mesh import Mesh, crosses_nodes

LINK_EFFICIENCY = 0.8
"""Share of a link's rate that payload reaches: NCCL's own model caps rings on an A100 node, whose
links carry 300 GB/s, at 235 GB/s (its tuning tables)."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The narrowest link that a group of ranks uses."""

    group_size: int
    crosses_nodes: bool
    bandwidth: float
    """Bytes per second that one rank of the group gets in one direction."""
    latency_s: float
    """Seconds per hop."""


def find_link(mesh: Mesh, axis: str, hardware: Hardware, gpus_per_node: int) -> Link:
    """The link of an axis; of its groups the one that crosses nodes, where any does."""
    assert hardware.node is not None
    size = mesh.sizes[axis]
    groups = mesh.groups(axis) if size > 1 else ()
    crossing = next((group for group in groups if crosses_nodes(group, gpus_per_node)), None)
    if crossing is None or hardware.network is None:
        bandwidth, latency_s = hardware.node.bandwidth, hardware.node.latency_s
    else:
        # Ranks of the group on the same node share its adapters: a ring leaves the node once, and
        # over as many of them as the group has ranks there.
        num_nodes = len({rank // gpus_per_node for rank in crossing})
        rails = 1 if axis == "pp" else max(1, size // num_nodes)
        bandwidth = min(hardware.node.bandwidth, rails * hardware.network.bandwidth)
        latency_s = hardware.network.latency_s
    return Link(
        group_size=size,
        crosses_nodes=crossing is not None,
        bandwidth=bandwidth * LINK_EFFICIENCY,
        latency_s=latency_s,
    )


def sent_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """What one rank sends: rings pass (n - 1) / n of the whole once, all-reduce twice."""
    around = (group_size - 1) / group_size
    factor = {"all_reduce": 2 * around, "reduce_scatter": around, "all_gather": around}
    return payload_bytes * factor.get(op, 1.0)


def transfer_s(op: str, payload_bytes: float, link: Link) -> float:
    """Seconds of one operation on `payload_bytes`, the size of the whole (unsharded) tensor."""
    if link.group_size == 1 and op != "send_recv":
        return 0.0
    # Large groups switch from rings to trees: hops grow with the logarithm (NCCL 2.4 and later).
    hops = max(1, math.ceil(math.log2(link.group_size)))
    num_hops = {"all_reduce": 2 * hops, "send_recv": 1}.get(op, hops)
    seconds = sent_bytes(op, payload_bytes, link.group_size) / link.bandwidth
    return seconds + num_hops * link.latency_s
