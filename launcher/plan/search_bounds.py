"""What a pipeline takes at least, in closed form: no schedule is walked.

A search prunes by these; every bound holds for the simulation of the same schedule (a test compares
them), so that no layout is lost by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge, mul
from typing import NamedTuple

from launcher.plan.collectives import SLOWDOWN, exposed_s
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
    there_s = sum([time.forward_s for time in times]) + hops * p2p_s
    alone_s = there_s + sum([time.backward_s for time in times]) + hops * p2p_s
    if name == "naive":
        return count * alone_s
    splits = sum([time.weight_s for time in times]) > 0
    found = alone_s
    arrival_s = drain_s = 0.0
    parts_of = chain.parts_of_stages
    for stage in range(stages):
        passes_s = weights_s = 0.0
        for part in parts_of[stage]:
            forward_s, backward_s, weight_s = times[part]
            passes_s += forward_s + backward_s
            weights_s += weight_s
        passes_s, weights_s = count * passes_s, count * weights_s
        last_s = 0.0 if not splits else times[0].weight_s if stage else weights_s
        tail_s = drain_s + last_s
        found = max(found, arrival_s + passes_s + (tail_s if tail_s > weights_s else weights_s))
        arrival_s += times[stage].forward_s + p2p_s
        drain_s += times[stage].backward_s + p2p_s
    if stages == 1:
        return found
    # The last stage has little to do until its first backward.
    drain_s -= times[stages - 1].backward_s + p2p_s
    if name in WITH_ROUNDS:
        own = [times[part] for part in parts_of[-1]]
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
    weight: Quad
    """What a split backward leaves for later; 0 where it is not split."""

    def row(self, p2p_s: float) -> tuple[float, ...]:
        """With a transfer, as a row of `quick_rows` takes them."""
        return (*self.forward, *self.backward, *self.weight, p2p_s)


Row = tuple[float, ...]
"""How often each time of `UnitTimes.row` counts."""

_NONE: Units = (0, 0, 0, 0)


def quick_rows(name: str, cut: Cut, count: int, is_late: bool) -> list[Row]:
    """`every_row`, without those that another is no less than in every time."""
    kept: list[Row] = []
    for row in sorted(every_row(name, cut, count, is_late), key=sum, reverse=True):
        if not any(all(map(ge, other, row)) for other in kept):
            kept.append(row)
    return kept


def every_row(name: str, cut: Cut, count: int, is_late: bool) -> list[Row]:
    """A bound like `shortest_s` from a few stages only, for any times: no step is shorter than any
    row times the times. `is_late`: backward is split.
    """
    stages, chunks, parts = cut.chain.num_stages, cut.chain.num_chunks, cut.chain.num_parts
    hops = 0 if stages == 1 else parts - 1 - (chunks - 1 if cut.chain.placement == "v" else 0)
    alone = _row(cut.whole, cut.whole, _NONE, 2 * hops)
    if name == "naive":
        return [_times(count, alone)]
    rows = [alone]
    for probe in cut.probes:
        own, before = probe.own, probe.before if probe.stage else _NONE
        arrival = _row(before, _NONE, _NONE, probe.stage)
        drain = _row(_NONE, before, _NONE, probe.stage)
        work = _times(count, _row(own, own, own, 0))
        if not is_late:
            rows.append(_add(arrival, work, drain))
            continue
        passes = _times(count, _row(own, own, _NONE, 0))
        last = _row(_NONE, _NONE, cut.first, 0)
        if not probe.stage:
            last = _times(count, _row(_NONE, _NONE, own, 0))
        rows += [_add(arrival, work), _add(arrival, passes, drain, last)]
    if stages == 1:
        return rows
    # The last stage: its work and drain are those of the last probe.
    there = _row(cut.whole, _NONE, _NONE, hops)
    if name in WITH_ROUNDS:
        rounds = round_sizes(stages, count)[0]
        waiting = _add(
            _times(rounds, _row(probe.own_but_last, _NONE, _NONE, 0)),
            _row(probe.last, _NONE, _NONE, 0),
        )
        found = _add(there, work, _times(-1, waiting))
        rows.append(found if is_late else _add(found, drain))
    if name == "1f1b" and count >= stages:
        # One round trip per `stages` microbatches, as in `_one_f_one_b_s`.
        cycles, rest = divmod(count - 1, stages)
        steady = _add(_times(cycles, alone), _times(rest, _row(probe.last, probe.last, _NONE, 0)))
        rows.append(_add(there, _row(_NONE, probe.last, _NONE, 0), steady, drain))
    return rows


def _row(forward: Units, backward: Units, weight: Units, p2p: int) -> Row:
    return (*forward, *backward, *weight, p2p)


def _times(count: int, row: Row) -> Row:
    return tuple([count * each for each in row])


def _add(*rows: Row) -> Row:
    return tuple([sum(column) for column in zip(*rows, strict=True)])


def quick_s(rows: Sequence[Row], times: Row) -> float:
    """The longest of some rows."""
    return float(max([sum(map(mul, row, times)) for row in rows]))


def least_exposed_s(communication_s: float, least_s: float, most_s: float) -> float:
    """Of `exposed_s` beside any window in a range: it is smallest where the window, slowed down by
    the collective, ends with it; beside a longer one the collective slows more of it down.
    """
    best_s = communication_s / (1 + SLOWDOWN)
    window_s = best_s if best_s > least_s else least_s
    return exposed_s(communication_s, window_s if window_s < most_s else most_s)
