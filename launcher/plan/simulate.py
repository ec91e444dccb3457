"""What a schedule costs: checked, then walked with a clock per stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from launcher.frozen import frozen
from launcher.plan.schedule import build_orders
from launcher.plan.schedule_check import check_schedule
from launcher.plan.schedule_clock import Durations, Timing, walk
from launcher.plan.schedule_records import (
    Chain,
    Schedule,
    ScheduleError,
    StageTimes,
    has_weight_actions,
)

__all__ = [
    "ScheduleError", "Simulation", "StageTimes", "check_schedule", "peak_in_flight", "simulate",
]  # fmt: skip


@frozen
class Simulation:
    """One step of a schedule, timed."""

    makespan_s: float
    """From the first action to the end of the last one on any stage."""
    start_s: tuple[float, ...]
    """When each stage starts its first compute action."""
    finish_s: tuple[float, ...]
    """When each stage ends."""
    busy_s: tuple[float, ...]
    """How long each stage computes."""
    peak_in_flight: tuple[int, ...]
    """Most microbatches (times chunks) that each stage holds between their forward and the end of
    their backward, weight gradients included."""
    times: tuple[StageTimes, ...]
    """Of every part of the model, in its order: what was simulated."""
    p2p_s: float
    """From the end of an action to the arrival of its result on another stage."""

    def quicker(self, factor: float) -> Simulation:
        """With everything in 1 / factor of its time."""
        if factor == 1.0:
            return self
        times = tuple(
            StageTimes(
                forward_s=one.forward_s / factor,
                backward_s=one.backward_s / factor,
                weight_s=one.weight_s / factor,
            )
            for one in self.times
        )
        return Simulation(
            makespan_s=self.makespan_s / factor,
            start_s=tuple(seconds / factor for seconds in self.start_s),
            finish_s=tuple(seconds / factor for seconds in self.finish_s),
            busy_s=tuple(seconds / factor for seconds in self.busy_s),
            peak_in_flight=self.peak_in_flight,
            times=times,
            p2p_s=self.p2p_s / factor,
        )

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan in which the busiest stage waits."""
        return max(0.0, 1 - max(self.busy_s) / self.makespan_s) if self.makespan_s else 0.0

    @property
    def unsynchronised_bubble_fraction(self) -> float:
        """The same of a step that ends on each stage by itself, without a meeting of all stages.

        A stage that started later may then end later: how arXiv:2401.10241 (sec. 4) counts.
        """
        longest = max(
            finish - start for start, finish in zip(self.start_s, self.finish_s, strict=True)
        )
        return 1 - max(self.busy_s) / longest if longest else 0.0


def simulate(schedule: Schedule, times: Sequence[StageTimes], p2p_s: float = 0.0) -> Simulation:
    """Check a schedule and time it; `times` of every part, in the order of the model.

    A compute action starts when its stage is free and what it needs has arrived: p2p_s after the
    neighbour ended the action that sends it. Transfers do not occupy the stages.
    Raises ScheduleError for everything that would hang or compute nonsense.
    """
    chain = schedule.chain
    assert len(times) == chain.num_parts, f"{len(times)} times for {chain.num_parts} parts"
    peaks = check_schedule(schedule)
    durations = Durations(times=times, p2p_s=p2p_s)
    timing = walk(chain, schedule.num_microbatches, schedule.ranks, durations)
    splits = has_weight_actions(schedule.ranks)
    return record_simulation(
        chain, schedule.num_microbatches, times, p2p_s, timing=timing, peaks=peaks, splits=splits
    )


def record_simulation(
    chain: Chain,
    num_microbatches: int,
    times: Sequence[StageTimes],
    p2p_s: float,
    *,
    timing: Timing,
    peaks: tuple[int, ...],
    splits: bool,
) -> Simulation:
    """A schedule's timing, with what its stages work and hold."""
    busy = tuple(
        num_microbatches
        * sum(_work_s(times[chain.part(stage, chunk)], splits) for chunk in range(chain.num_chunks))
        for stage in range(chain.num_stages)
    )
    return Simulation(
        makespan_s=timing.makespan_s,
        start_s=timing.starts,
        finish_s=timing.finishes,
        busy_s=busy,
        peak_in_flight=peaks,
        times=tuple(times),
        p2p_s=p2p_s,
    )


def peak_in_flight(
    name: str, num_stages: int, num_microbatches: int, num_chunks: int | None = None
) -> tuple[int, ...]:
    """Only what `simulate(build_schedule(...)).peak_in_flight` is, at a fraction of the time."""
    orders = build_orders(name, num_stages, num_microbatches, num_chunks)
    splits = has_weight_actions(orders)
    signs = {"F": 1, "B": 0 if splits else -1, "W": -1}
    return tuple(max(accumulate([signs[kind] for kind, _, _ in actions])) for actions in orders)


def _work_s(times: StageTimes, splits: bool) -> float:
    """All that one microbatch takes on one part."""
    return times.forward_s + times.backward_s + (times.weight_s if splits else 0.0)
