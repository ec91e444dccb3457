"""Pipelines of a search: walked, or bounded by what a walk of an alike one has shown."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.schema import Run
from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_choice import plan_file
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_records import StageTimes
from launcher.plan.search_bounds import shortest_s
from launcher.plan.search_cuts import Cut
from launcher.plan.shared_cores import quickening, takes_turns
from launcher.plan.simulate_named import named_orders, time_named

_Walked = tuple[tuple[float, ...], float]
"""Times of the parts of every kind and of a transfer; and from the first action to the last."""


class Walks:
    """Of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[object, list[_Walked]] = {}

    def bound_s(
        self, name: str, cut: Cut, count: int, kinds: Sequence[StageTimes], p2p_s: float
    ) -> float:
        """No less than this on busy cores; `kinds` are the times of cut.pieces."""
        times = [kinds[kind] for kind in cut.kinds]
        closed_s = shortest_s(name, cut.chain, count, times, p2p_s)
        found = [closed_s]
        # In a fixed order every action ends as late as some path of actions and transfers that it
        # waits for. Where each of them takes at least r times as long, so does the whole.
        values = _values(kinds, p2p_s)
        for others, makespan_s in self._known.get((name, id(cut), count), ()):
            ratios = [one / other for one, other in zip(values, others, strict=True) if other]
            found.append(min(ratios) * makespan_s)
        return max(found)

    def exact_s(
        self, name: str, cut: Cut, count: int, kinds: Sequence[StageTimes], p2p_s: float
    ) -> float:
        """From the first action to the last, as the plan walks them."""
        times = tuple([kinds[kind] for kind in cut.kinds])
        if name not in SCHEDULES:
            durations = Durations(times=times, p2p_s=p2p_s)
            ranks = plan_file(self._run).ranks
            makespan_s = walk(cut.chain, count, ranks, durations).makespan_s
            return makespan_s / quickening(self._run.hardware, cut.chain, count, ranks, durations)
        makespan_s = time_named(name, cut.chain, count, times, p2p_s).makespan_s
        if SCHEDULES[name].order is not None:  # it does not depend on times
            walked = (_values(kinds, p2p_s), makespan_s)
            self._known.setdefault((name, id(cut), count), []).append(walked)
        if not takes_turns(self._run.hardware, cut.chain):
            return makespan_s
        orders, durations = named_orders(name, cut.chain, count), Durations(times, p2p_s)
        return makespan_s / quickening(
            self._run.hardware, cut.chain, count, orders, durations, has_transfers=False
        )


def _values(kinds: Sequence[StageTimes], p2p_s: float) -> tuple[float, ...]:
    return (p2p_s, *[seconds for times in kinds for seconds in times])
