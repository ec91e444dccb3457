"""What a schedule costs and what is wrong in it: walks its actions with a clock per stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from typing import get_args

from launcher.plan.schedule import Action, Kind, Schedule, build_orders


class ScheduleError(ValueError):
    """The schedule cannot run; the message names the stage and the action."""


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """How long one microbatch takes on one stage."""

    forward_s: float
    backward_s: float
    """Of a B action: with the weight gradients, unless the schedule has W actions."""
    weight_s: float = 0.0
    """Of a W action."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """One step of a schedule, timed."""

    makespan_s: float
    """From the first action to the end of the last one on any stage."""
    finish_s: tuple[float, ...]
    """When each stage ends."""
    busy_s: tuple[float, ...]
    """How long each stage computes."""
    peak_in_flight: tuple[int, ...]
    """Most microbatches that each stage holds between their forward and their backward."""

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan in which the busiest stage waits."""
        return 1 - max(self.busy_s) / self.makespan_s if self.makespan_s else 0.0


def simulate(schedule: Schedule, times: Sequence[StageTimes], p2p_s: float = 0.0) -> Simulation:
    """Check a schedule and time it.

    A compute action starts when its stage is free and what it needs has arrived: p2p_s after the
    neighbour ended the action that sends it. Transfers do not occupy the stages.
    Raises ScheduleError for everything that would hang or compute nonsense.
    """
    peaks = check_schedule(schedule)
    finish = _run(schedule, times, p2p_s)
    busy = tuple(_busy(actions, time) for actions, time in zip(schedule.ranks, times, strict=True))
    return Simulation(makespan_s=max(finish), finish_s=finish, busy_s=busy, peak_in_flight=peaks)


def peak_in_flight(name: str, num_stages: int, num_microbatches: int) -> tuple[int, ...]:
    """Only what `simulate(build_schedule(...)).peak_in_flight` is, at a fraction of the time."""
    signs = {"F": 1, "B": -1, "W": 0}
    return tuple(
        max(accumulate([signs[action.kind] for action in actions]))
        for actions in build_orders(name, num_stages, num_microbatches)
    )


def check_schedule(schedule: Schedule) -> tuple[int, ...]:
    """Refuse a schedule that is wrong whatever the times; return each stage's peak in flight."""
    checked = [
        _check_stage(stage, actions, schedule) for stage, actions in enumerate(schedule.ranks)
    ]
    for left, right in pairwise(range(schedule.num_stages)):
        _check_channel(checked, left, right, "forward")
        _check_channel(checked, right, left, "backward")
    return tuple(stage.peak for stage in checked)


class _CheckedStage:
    """What a walk over one stage has seen so far."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[int, None]] = {kind: {} for kind in get_args(Kind)}
        self.peak = 0


NEEDS = {
    "B": "F",
    "W": "B",
    "send_forward": "F",
    "send_backward": "B",
}
"""What a stage must have done itself before an action on the same microbatch."""


def _check_stage(stage: int, actions: Sequence[Action], schedule: Schedule) -> _CheckedStage:
    """Every microbatch once forward, then once backward, then W if any; transfers around them."""
    checked, alive = _CheckedStage(), 0
    seen, needs = checked.seen, dict(NEEDS)
    if stage > 0:
        needs["F"] = "recv_forward"
    for action in actions:
        kind, microbatch = action.kind, action.microbatch
        if microbatch in seen[kind]:
            raise ScheduleError(f"stage {stage}: {action} is there twice")
        if kind in needs and microbatch not in seen[needs[kind]]:
            raise ScheduleError(_missing_need(stage, action, needs[kind]))
        if kind == "F":
            alive += 1
            checked.peak = max(checked.peak, alive)
        elif kind == "B":
            alive -= 1
            if stage < schedule.num_stages - 1 and microbatch not in seen["recv_backward"]:
                raise ScheduleError(_missing_need(stage, action, "recv_backward"))
        seen[kind][microbatch] = None
    _check_microbatches(stage, seen, schedule.num_microbatches)
    _check_ends(stage, seen, schedule.num_stages)
    return checked


def _missing_need(stage: int, action: Action, needed: str) -> str:
    if needed.startswith("recv"):
        return f"stage {stage}: {action} has no receive posted before it"
    return f"stage {stage}: {action} comes before {needed}{action.microbatch}"


def _check_microbatches(stage: int, seen: dict[str, dict[int, None]], count: int) -> None:
    """All microbatches are there, and no others."""
    wanted = set(range(count))
    for kind in ("F", "B", "W") if seen["W"] else ("F", "B"):
        if missing := wanted - set(seen[kind]):
            raise ScheduleError(f"stage {stage}: {kind}{min(missing)} is missing")
        if extra := set(seen[kind]) - wanted:
            raise ScheduleError(
                f"stage {stage}: {kind}{min(extra)} is beyond the {count} microbatches"
            )


def _check_ends(stage: int, seen: dict[str, dict[int, None]], num_stages: int) -> None:
    """The first stage has no stage before it and the last one none behind it."""
    outside = {
        stage - 1: ("recv_forward", "send_backward"),
        stage + 1: ("send_forward", "recv_backward"),
    }
    for neighbour, kinds in outside.items():
        for kind in kinds if not 0 <= neighbour < num_stages else ():
            for microbatch in seen[kind]:
                raise ScheduleError(f"stage {stage}: {kind}({microbatch}) has no stage {neighbour}")


def _check_channel(
    checked: Sequence[_CheckedStage], source: int, target: int, direction: str
) -> None:
    """What one stage sends is what its neighbour receives, in the same order.

    Both have run every microbatch, and no stage runs what it has not received or sends what it
    has not run: what is sent is therefore received, but not the other way round.
    """
    sent = checked[source].seen[f"send_{direction}"]
    received = checked[target].seen[f"recv_{direction}"]
    for first, second in zip_longest(sent, received):
        if second not in sent:
            raise ScheduleError(
                f"stage {target}: recv_{direction}({second}) has no send on stage {source}"
            )
        if first != second:
            raise ScheduleError(
                f"stage {target}: recv_{direction}({second}) meets send_{direction}({first}) of "
                f"stage {source}: a channel keeps its order"
            )


def _run(schedule: Schedule, times: Sequence[StageTimes], p2p_s: float) -> tuple[float, ...]:
    """Run every stage until it waits for a neighbour; a send wakes that neighbour up."""
    stages = [
        _StageClock(stage, actions, times[stage]) for stage, actions in enumerate(schedule.ranks)
    ]
    for stage in stages[1:]:
        stage.waited_for["F"] = stages[stage.index - 1].sent["send_forward"]
    for stage in stages[:-1]:
        stage.waited_for["B"] = stages[stage.index + 1].sent["send_backward"]
    moved = True
    while moved:
        # Down and up again: forwards travel one way, backwards the other.
        moved = sum(stage.advance(p2p_s) for stage in (*stages, *reversed(stages))) > 0
    for stage in stages:
        if stage.position < len(stage.actions):
            raise ScheduleError(
                f"deadlock: stage {stage.index} waits at {stage.actions[stage.position]} "
                "for a transfer that is never sent"
            )
    return tuple(stage.clock_s for stage in stages)


class _StageClock:
    """How far one stage has come."""

    def __init__(self, index: int, actions: Sequence[Action], times: StageTimes) -> None:
        self.index, self.actions = index, actions
        self.durations = {"F": times.forward_s, "B": times.backward_s, "W": times.weight_s}
        self.position, self.clock_s = 0, 0.0
        self.sent: dict[str, dict[int, float]] = {"send_forward": {}, "send_backward": {}}
        self.waited_for: dict[str, dict[int, float]] = {}

    def advance(self, p2p_s: float) -> bool:
        """Run until an input is missing; whether anything was run."""
        actions, durations, sent, waited_for = (
            self.actions, self.durations, self.sent, self.waited_for,
        )  # fmt: skip
        start, clock_s = self.position, self.clock_s
        for position in range(start, len(actions)):
            action = actions[position]
            kind = action.kind
            if kind in durations:
                if kind in waited_for:
                    sent_s = waited_for[kind].get(action.microbatch)
                    if sent_s is None:
                        break
                    clock_s = max(clock_s, sent_s + p2p_s)
                clock_s += durations[kind]
            elif kind in sent:
                sent[kind][action.microbatch] = clock_s
            self.position = position + 1
        self.clock_s = clock_s
        return self.position > start


def _busy(actions: Sequence[Action], times: StageTimes) -> float:
    counts = Counter([action.kind for action in actions])
    return (
        counts["F"] * times.forward_s
        + counts["B"] * times.backward_s
        + counts["W"] * times.weight_s
    )
