"""What a pipeline takes at least, in closed form: no schedule is walked.

A search prunes by these; every bound holds for the simulation of the same schedule (a test compares
them), so that no layout is lost by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.plan.schedule_orders import round_sizes
from launcher.plan.schedule_records import Chain, StageTimes
from launcher.plan.search_cuts import Cut, Units

Quad = tuple[float, float, float, float]

WITH_ROUNDS = ("interleaved_1f1b", "zb_h1")
"""Whose last stage runs a round of every chunk but one before its first backward."""


def shortest_s(
    name: str, chain: Chain, count: int, times: Sequence[StageTimes], p2p_s: float
) -> float:
    """No step of `count` microbatches is shorter; `times` of every part, in the model's order."""
    stages, chunks, parts = chain.num_stages, chain.num_chunks, chain.num_parts
    hops = 0 if stages == 1 else parts - 1
    if chain.placement == "v":
        hops -= chunks - 1
    there_s = sum(time.forward_s for time in times) + hops * p2p_s
    alone_s = there_s + sum(time.backward_s for time in times) + hops * p2p_s
    if name == "naive":
        return count * alone_s
    splits = any(time.weight_s for time in times)
    found = alone_s
    arrival_s = drain_s = 0.0
    for stage in range(stages):
        own = [times[chain.part(stage, chunk)] for chunk in range(chunks)]
        passes_s = count * sum(time.forward_s + time.backward_s for time in own)
        weights_s = count * sum(time.weight_s for time in own)
        found = max(found, arrival_s + passes_s + weights_s)
        last_s = times[0].weight_s if splits and stage else 0.0
        if splits and not stage:
            last_s = weights_s
        found = max(found, arrival_s + passes_s + drain_s + last_s)
        arrival_s += times[stage].forward_s + p2p_s
        drain_s += times[stage].backward_s + p2p_s
    if stages == 1:
        return found
    # The last stage has little to do until its first backward.
    drain_s -= times[stages - 1].backward_s + p2p_s
    if name in WITH_ROUNDS:
        own = [times[chain.part(stages - 1, chunk)] for chunk in range(chunks)]
        size = round_sizes(stages, count)[0]
        before_s = size * sum(time.forward_s for time in own[:-1]) + own[-1].forward_s
        work_s = count * sum(time.forward_s + time.backward_s + time.weight_s for time in own)
        found = max(found, there_s + work_s - before_s + (0.0 if splits else drain_s))
    if name == "1f1b":
        found = max(found, _one_f_one_b_s(stages, count, times, p2p_s, there_s, drain_s))
    return found


def _one_f_one_b_s(
    stages: int,
    count: int,
    times: Sequence[StageTimes],
    p2p_s: float,
    there_s: float,
    back_s: float,
) -> float:
    """Stage p - q starts forward i + q when backward i is done, so that the last stage gets its
    input only after a round trip over the last q stages.
    """
    end = times[-1]
    first_s = there_s + end.backward_s
    own_s = end.forward_s + end.backward_s
    most_s, trip_s = 0.0, 0.0
    for q in range(1, min(stages, count) + 1):
        time = times[stages - q]
        trip_s += time.forward_s + time.backward_s
        cycles, rest = divmod(count - 1, q)
        most_s = max(most_s, cycles * (trip_s + 2 * (q - 1) * p2p_s) + rest * own_s)
    return first_s + most_s + back_s


class UnitTimes(NamedTuple):
    """Seconds of (a block, one without experts, the model's first end, its last end)."""

    forward: Quad
    backward: Quad
    passes: Quad
    """Forward and backward."""
    work: Quad
    """The same, and what a split backward leaves for later."""
    weight: Quad | None
    """Of this alone; None: backward is not split."""


def quick_s(name: str, cut: Cut, count: int, times: UnitTimes, p2p_s: float) -> float:
    """A bound like `shortest_s` from a few stages only."""
    stages, chunks, parts = cut.chain.num_stages, cut.chain.num_chunks, cut.chain.num_parts
    hops = 0 if stages == 1 else parts - 1 - (chunks - 1 if cut.chain.placement == "v" else 0)
    alone_s = _sum(cut.whole, times.passes) + 2 * hops * p2p_s
    if name == "naive":
        return count * alone_s
    found, weight = alone_s, times.weight
    for probe in cut.probes:
        arrival_s = drain_s = 0.0
        if probe.stage:
            hops_s = probe.stage * p2p_s
            arrival_s = _sum(probe.before, times.forward) + hops_s
            drain_s = _sum(probe.before, times.backward) + hops_s
        work_s = count * _sum(probe.own, times.work)
        if weight is None:
            found = max(found, arrival_s + work_s + drain_s)
            continue
        passes_s = count * _sum(probe.own, times.passes)
        last_s = _sum(cut.first, weight) if probe.stage else work_s - passes_s
        found = max(found, arrival_s + work_s, arrival_s + passes_s + drain_s + last_s)
    if stages == 1:
        return found
    # The last stage: its work, arrival and drain are those of the last probe.
    if name in WITH_ROUNDS:
        there_s = _sum(cut.whole, times.forward) + hops * p2p_s
        before_s = round_sizes(stages, count)[0] * _sum(probe.own_but_last, times.forward)
        before_s += _sum(probe.last, times.forward)
        found = max(found, there_s + work_s - before_s + (0.0 if weight else drain_s))
    if name == "1f1b" and count >= stages:
        # One round trip per `stages` microbatches, as in `_one_f_one_b_s`.
        there_s = _sum(cut.whole, times.forward) + hops * p2p_s
        cycles, rest = divmod(count - 1, stages)
        steady_s = cycles * alone_s + rest * _sum(probe.last, times.passes)
        end_s = _sum(probe.last, times.backward)
        found = max(found, there_s + end_s + steady_s + drain_s)
    return found


def _sum(units: Units, seconds: Quad) -> float:
    blocks, dense, first, last = units
    block_s, dense_s, first_s, last_s = seconds
    return blocks * block_s + dense * dense_s + first * first_s + last * last_s
