"""What a pipeline takes at least, in closed form: no schedule is walked.

A search prunes by these; every bound holds for the simulation of the same schedule (a test compares
them), so that no layout is lost by it.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.schedule_orders import round_sizes
from launcher.plan.schedule_records import Chain, StageTimes
from launcher.plan.search_cuts import Cut, Kinds

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


def quick_s(name: str, cut: Cut, count: int, kinds: Sequence[StageTimes], p2p_s: float) -> float:
    """A bound like `shortest_s` from a few stages only; `kinds` are the times of cut.pieces."""
    stages, chunks, parts = cut.chain.num_stages, cut.chain.num_chunks, cut.chain.num_parts
    hops = 0 if stages == 1 else parts - 1 - (chunks - 1 if cut.chain.placement == "v" else 0)
    there_s, back_s, late_s = _sums(cut.all_kinds, kinds)
    there_s += hops * p2p_s
    alone_s = there_s + back_s + hops * p2p_s
    if name == "naive":
        return count * alone_s
    found = alone_s
    for probe in cut.probes:
        forward_s, backward_s, weight_s = _sums(probe.own, kinds)
        arrival_s, drain_s, _ = _sums(probe.before, kinds)
        hops_s = probe.stage * p2p_s
        passes_s = arrival_s + hops_s + count * (forward_s + backward_s)
        last_s = 0.0
        if late_s:
            last_s = kinds[cut.kinds[0]].weight_s if probe.stage else count * weight_s
        found = max(found, passes_s + count * weight_s, passes_s + drain_s + hops_s + last_s)
    if stages == 1:
        return found
    probe = cut.probes[-1]
    if name in WITH_ROUNDS:
        forward_s, backward_s, weight_s = _sums(probe.own, kinds)
        before_s = round_sizes(stages, count)[0] * _sums(probe.own_but_last, kinds)[0]
        before_s += kinds[probe.last].forward_s
        drain_s = 0.0 if late_s else _sums(probe.before, kinds)[1] + probe.stage * p2p_s
        work_s = count * (forward_s + backward_s + weight_s)
        found = max(found, there_s + work_s - before_s + drain_s)
    if name == "1f1b" and count >= stages:
        # One round trip per `stages` microbatches, as in `_one_f_one_b_s`.
        end = kinds[probe.last]
        cycles, rest = divmod(count - 1, stages)
        trip_s = alone_s if cycles else 0.0
        steady_s = cycles * trip_s + rest * (end.forward_s + end.backward_s)
        drain_s = _sums(probe.before, kinds)[1] + probe.stage * p2p_s
        found = max(found, there_s + end.backward_s + steady_s + drain_s)
    return found


def _sums(of: Kinds, kinds: Sequence[StageTimes]) -> tuple[float, float, float]:
    forward_s = backward_s = weight_s = 0.0
    for kind, number in of:
        times = kinds[kind]
        forward_s += number * times.forward_s
        backward_s += number * times.backward_s
        weight_s += number * times.weight_s
    return forward_s, backward_s, weight_s
