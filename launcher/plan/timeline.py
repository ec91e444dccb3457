"""When everything of one step happens, action by action: what pages and traces draw."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.records import Plan
from launcher.plan.schedule_choice import plan_schedule
from launcher.plan.schedule_clock import Clock, Durations, run_clocks
from launcher.plan.schedule_records import COMPUTE, Chain, Kind


class Span(NamedTuple):
    """One action in time."""

    kind: Kind
    microbatch: int
    chunk: int
    start_s: float
    """From the first action of the step. Of a transfer: when its data leaves."""
    end_s: float
    """Of a transfer: when its data has arrived."""


class Timeline(NamedTuple):
    """One step of the schedule that will run, and what comes behind it."""

    chain: Chain
    """Which part of the model each stage's chunks are."""
    compute: tuple[tuple[Span, ...], ...]
    """F, B and W actions of every stage, one after another."""
    transfers: tuple[tuple[Span, ...], ...]
    """Sends and receives of every stage; they run beside the computing and each other."""
    pipeline_s: float
    """End of the last action: forwards and backwards of all microbatches."""
    reduction_s: float
    """What the step then waits for gradients, and weights, of the replicas."""
    optimizer_s: float
    """The update behind that."""

    @property
    def step_s(self) -> float:
        """The whole step."""
        return self.pipeline_s + self.reduction_s + self.optimizer_s


def build_timeline(plan: Plan) -> Timeline:
    """Walk the plan's schedule again, with the times that its simulation had, and keep everything.

    Exactly the simulation that `plan.time` comes from: the last span ends at its makespan.
    """
    schedule, simulated = plan_schedule(plan.run, plan.layout), plan.simulation
    durations = Durations(times=simulated.times, p2p_s=simulated.p2p_s)
    clocks = run_clocks(schedule.chain, schedule.num_microbatches, schedule.ranks, durations)
    stages = [_spans(clock, simulated.p2p_s) for clock in clocks]
    behind_s = max(0.0, plan.time.step_s - simulated.makespan_s)
    optimizer_s = min(plan.time.optimizer_s, behind_s)
    return Timeline(
        chain=schedule.chain,
        compute=tuple(tuple(span for span in stage if span.kind in COMPUTE) for stage in stages),
        transfers=tuple(
            tuple(span for span in stage if span.kind not in COMPUTE) for stage in stages
        ),
        pipeline_s=simulated.makespan_s,
        reduction_s=behind_s - optimizer_s,
        optimizer_s=optimizer_s,
    )


def _spans(clock: Clock, p2p_s: float) -> list[Span]:
    """The actions of one stage: nothing waits for an unknown any more, so one pass is enough."""
    spans, time_s = [], 0.0
    for action in clock.actions:
        kind, microbatch, chunk = action.kind, action.microbatch, action.chunk
        need, took_s, _, delay_s = clock.table[kind][chunk]
        if kind.startswith("send"):
            spans.append(Span(kind, microbatch, chunk, time_s, time_s + delay_s))
        elif kind.startswith("recv"):
            # Its data arrives when the action that needs it may start.
            user = "F" if kind == "recv_forward" else "B"
            arrivals = clock.table[user][chunk][0]
            arrival_s = arrivals[microbatch] if arrivals is not None else None
            assert arrival_s is not None, f"{action} has no arrival"
            spans.append(Span(kind, microbatch, chunk, max(0.0, arrival_s - p2p_s), arrival_s))
        else:
            start_s = max(time_s, (need[microbatch] or 0.0) if need is not None else 0.0)
            time_s = start_s + took_s
            spans.append(Span(kind, microbatch, chunk, start_s, time_s))
    return spans
