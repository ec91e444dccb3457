"""Which nodes of a job are bad, from what all of them say of themselves: a table of conditions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.node.checks.gpus import SLOWED_BY
from launcher.node.checks.report import STAGES, NodeReport

SLOW = {"cuda": 1.5, "cpu": 4.0}
"""A device is bad whose matrix product takes so many times as long as the median of those of the
other nodes. Healthy GPUs of one model differ by some percent, up to about a fifth; one that is
throttled or damaged by a half and more, and every step waits for it. Cores are shared by the ranks
of a node and with what else runs there, so its fastest rank counts, and only what is far off."""
CLOCK = 0.9
"""GPUs whose highest clock is below this share of the other nodes' median were limited by hand."""
EXCLUDE = "launch.exclude, and tell the site"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a node."""

    what: str
    """Stable name of the condition."""
    value: str
    """What was found."""
    reason: str
    """Why it matters."""
    fix: str = EXCLUDE


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the job expects."""

    nodes: tuple[str, ...]
    per_node: int
    """Ranks, each with a device of its own."""
    device: str
    """cuda or cpu."""
    timeout_s: float


def own_faults(report: NodeReport, wanted: Wanted) -> list[Fault]:
    """What a node tells against itself: no other node is needed to know it."""
    return [*_gpu_faults(report, wanted), *_rank_faults(report)]


def compared(reports: Mapping[str, NodeReport], device: str) -> Iterator[tuple[str, Fault]]:
    """Nodes that are unlike the others; with one node there is nothing to compare."""
    yield from _drivers(reports)
    yield from _clocks(reports)
    yield from _slow(reports, device)


def silent(reports: Mapping[str, NodeReport], wanted: Wanted) -> Iterator[tuple[str, Fault]]:
    """When the time is over: nodes that have said nothing, or for which the others wait."""
    missing = [node for node in wanted.nodes if node not in reports]
    for node in missing:
        yield (
            node,
            Fault(
                what="no_answer",
                value=f"nothing within {wanted.timeout_s:.0f} s",
                reason="its program did not start, or what it writes into the run directory is not "
                "seen by the first node",
                fix=f"{EXCLUDE}; launch.check_timeout_s where nodes start slowly",
            ),
        )
    if not missing:
        yield from _late(reports, wanted)


def find_faults(
    reports: Mapping[str, NodeReport], wanted: Wanted, is_over: bool
) -> dict[str, list[Fault]]:
    """Bad nodes, in the order of the job's nodes; `is_over` where nothing more is waited for."""
    found = [(node, fault) for node, one in reports.items() for fault in own_faults(one, wanted)]
    found += compared(reports, wanted.device)
    if is_over and not found:
        found += silent(reports, wanted)
    order = (*wanted.nodes, *(node for node in reports if node not in wanted.nodes))
    by_node = {node: [fault for name, fault in found if name == node] for node in order}
    return {node: faults for node, faults in by_node.items() if faults}


def is_everywhere(faults: Mapping[str, Sequence[Fault]], wanted: Wanted) -> bool:
    """Whether all nodes, more than one, have the same fault: then they are not to blame."""
    if len(wanted.nodes) < 2 or set(faults) < set(wanted.nodes):
        return False
    return bool(set.intersection(*({fault.what for fault in one} for one in faults.values())))


# A node by itself.


def _gpu_faults(report: NodeReport, wanted: Wanted) -> Iterator[Fault]:
    gpus = report.gpus
    if gpus is None:
        return
    if gpus.problem:
        yield Fault(
            what="driver_answer",
            value=gpus.problem,
            reason="nvidia-smi asks the driver as CUDA does: the driver is not loaded or stuck",
        )
        return
    if len(gpus.found) < wanted.per_node:
        yield Fault(
            what="gpu_count",
            value=f"{len(gpus.found)} of {wanted.per_node} GPUs",
            reason="a GPU is missing that the layout needs: it has fallen off the bus, or the job "
            "did not get it",
            fix=f"{EXCLUDE}; launch.gres or launch.gpu_type where no node has them",
        )
    for gpu in gpus.found:
        if gpu.ecc_errors:
            yield Fault(
                what="gpu_memory",
                value=f"GPU {gpu.index}: {gpu.ecc_errors} uncorrectable ECC errors",
                reason="its memory lost data since the driver was loaded; processes on it are "
                "ended when that happens",
            )
        bits = [words for bit, words in SLOWED_BY.items() if (gpu.slowed_by or 0) & bit]
        if bits:
            yield Fault(
                what="gpu_slowed",
                value=f"GPU {gpu.index}: slowed down by {', '.join(bits)}",
                reason="all ranks wait for the slowest one in every step",
            )


def _rank_faults(report: NodeReport) -> Iterator[Fault]:
    for rank in report.ranks:
        if rank.error and rank.stage == "started":
            yield Fault(
                what="device",
                value=f"rank {rank.rank}: {rank.error}",
                reason="the device of a rank could not compute a matrix product",
            )
        elif not rank.is_right:
            where = "matrix product" if rank.stage == "product" else "all-reduce"
            yield Fault(
                what="wrong_result",
                value=f"rank {rank.rank}: a wrong {where}",
                reason="a device or a link that computes or carries wrong numbers ruins the run",
            )


# A node beside the others.


def _drivers(reports: Mapping[str, NodeReport]) -> Iterator[tuple[str, Fault]]:
    versions = {
        node: report.gpus.found[0].driver
        for node, report in reports.items()
        if report.gpus and report.gpus.found
    }
    counts = Counter(versions.values())
    if len(counts) < 2:
        return
    # The most common one; of two that are as common the newer one, which runs what the older does.
    usual = max(counts, key=lambda version: (counts[version], _parts(version)))
    for node, version in versions.items():
        if version != usual:
            yield (
                node,
                Fault(
                    what="driver",
                    value=f"driver {version}, others have {usual}",
                    reason="kernels and NCCL may choose differently by driver: ranks then wait for "
                    "each other in vain, or compute differently",
                ),
            )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _clocks(reports: Mapping[str, NodeReport]) -> Iterator[tuple[str, Fault]]:
    clocks = {
        node: [gpu.max_clock_mhz for gpu in report.gpus.found if gpu.max_clock_mhz]
        for node, report in reports.items()
        if report.gpus
    }
    for node, own, usual in _beside_others(clocks):
        lowest = min(own)
        if lowest < CLOCK * usual:
            yield (
                node,
                Fault(
                    what="gpu_clock",
                    value=f"highest clock {lowest:.0f} MHz, others {usual:.0f} MHz",
                    reason="all ranks wait for the slowest one in every step",
                ),
            )


def _slow(reports: Mapping[str, NodeReport], device: str) -> Iterator[tuple[str, Fault]]:
    times = {
        node: [rank.product_s for rank in report.ranks if rank.product_s is not None]
        for node, report in reports.items()
    }
    if device == "cpu":
        times = {node: [min(own)] for node, own in times.items() if own}
    for node, own, usual in _beside_others(times):
        slowest = max(own)
        if slowest > SLOW[device] * usual:
            yield (
                node,
                Fault(
                    what="slow",
                    value=f"a matrix product takes {1e3 * slowest:.1f} ms, on other nodes "
                    f"{1e3 * usual:.1f} ms",
                    reason=f"more than {SLOW[device]:g} times as long; all ranks wait for the "
                    "slowest one in every step",
                ),
            )


def _beside_others(
    values: Mapping[str, Sequence[float]],
) -> Iterator[tuple[str, Sequence[float], float]]:
    """Each node with its values and the median of all other nodes' values."""
    for node, own in values.items():
        others = [value for other, some in values.items() if other != node for value in some]
        if own and others:
            yield node, own, statistics.median(others)


# The end of the time.


def _late(reports: Mapping[str, NodeReport], wanted: Wanted) -> Iterator[tuple[str, Fault]]:
    """Nodes that did not come as far as others: a rank that cannot be met keeps all others up."""
    progress = {node: _progress(report, wanted) for node, report in reports.items()}
    least, most = min(progress.values()), max(progress.values())
    if least == most:
        return  # They wait for each other, and nothing tells who is to blame.
    late = [node for node, stage in progress.items() if stage == least]
    if 2 * len(late) > len(progress):
        # Most nodes are cut off from a few: the few are.
        late = [node for node, stage in progress.items() if stage > least]
    for node in late:
        errors = [rank.error for rank in reports[node].ranks if rank.error]
        done = "nothing" if progress[node] < 1 else f"no more than {STAGES[progress[node]]}"
        yield (
            node,
            Fault(
                what="unreachable" if progress[node] else "no_product",
                value=errors[0] if errors else f"{done} within {wanted.timeout_s:.0f} s",
                reason="other nodes came further and waited for it, or it for them: its network, "
                "or a firewall between the nodes",
                fix=f"{EXCLUDE}; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME in launch.env",
            ),
        )


def _progress(report: NodeReport, wanted: Wanted) -> int:
    if len(report.ranks) < wanted.per_node:
        return 0
    return min(rank.progress for rank in report.ranks)


def is_complete(reports: Mapping[str, NodeReport], wanted: Wanted) -> bool:
    """Whether every rank of every node has done everything."""
    last = last_stage(len(wanted.nodes) * wanted.per_node)
    return set(wanted.nodes) <= set(reports) and all(
        report.is_final
        and len(report.ranks) == wanted.per_node
        and all(rank.stage == last for rank in report.ranks)
        for report in reports.values()
    )


def last_stage(world_size: int) -> str:
    """What the ranks do last; one alone has nobody to meet."""
    return STAGES[-1] if world_size > 1 else "product"
