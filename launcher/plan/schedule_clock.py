"""When the actions of a schedule run: a clock per stage, which waits for what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from launcher.plan.schedule_records import COMPUTE, Action, Chain, ScheduleError, StageTimes

Arrivals = list[float | None]
"""When the input of each microbatch is there; None: not yet."""
Effect = tuple[Arrivals | None, float, Arrivals | None, float]
"""What an action waits for, how long it takes, where its result goes, and how long that takes."""
NOTHING: Effect = (None, 0.0, None, 0.0)
MOST_NAMED = 8
"""Stages of a deadlock that are named."""


class Timing(NamedTuple):
    """Start and end of the work of each stage."""

    starts: tuple[float, ...]
    finishes: tuple[float, ...]

    @property
    def makespan_s(self) -> float:
        """From the first start to the last end."""
        return max(self.finishes)

    @property
    def longest_stage_s(self) -> float:
        """Longest time that any stage takes from its own start to its own end."""
        return max(finish - start for start, finish in zip(self.starts, self.finishes, strict=True))


class Durations(NamedTuple):
    """How long everything takes."""

    times: Sequence[StageTimes]
    """Of every part of the model."""
    p2p_s: float = 0.0
    """Between two stages."""


def walk(
    chain: Chain,
    num_microbatches: int,
    ranks: Sequence[Sequence[Action]],
    durations: Durations,
    has_transfers: bool = True,
) -> Timing:
    """Time the actions of all stages. Raises ScheduleError where they wait for ever.

    A compute action starts when its stage is free and its input has arrived: p2p_s after the send,
    or, for orders without transfers, after the compute action on the other stage.
    """
    clocks = run_clocks(chain, num_microbatches, ranks, durations, has_transfers)
    return Timing(
        starts=tuple(clock.start_s() for clock in clocks),
        finishes=tuple(clock.time_s for clock in clocks),
    )


def run_clocks(
    chain: Chain,
    num_microbatches: int,
    ranks: Sequence[Sequence[Action]],
    durations: Durations,
    has_transfers: bool = True,
) -> list[Clock]:
    """One clock per stage, run to its end: every arrival in its table is then known."""
    tables = _connect(chain, num_microbatches, durations, has_transfers)
    clocks = [Clock(actions, table) for actions, table in zip(ranks, tables, strict=True)]
    waiting = [(stage, clock, clock.run()) for stage, clock in enumerate(clocks)]
    while waiting:
        before = sum([clock.position for _, clock, _ in waiting])
        # Down and up again: forwards travel one way, backwards the other.
        for _, _, run in waiting:
            next(run, None)
        for _, _, run in reversed(waiting):
            next(run, None)
        has_moved = sum([clock.position for _, clock, _ in waiting]) > before
        waiting = [entry for entry in waiting if entry[1].position < len(entry[1].actions)]
        if waiting and not has_moved:
            raise ScheduleError(_deadlock(chain, {stage: clock for stage, clock, _ in waiting}))
    return clocks


def _deadlock(chain: Chain, stuck: dict[int, Clock]) -> str:
    """The circle of stages that wait for each other, or the way to the one that has ended."""
    words, stage, named = [], min(stuck), set[int]()
    while stage in stuck and stage not in named and len(named) < MOST_NAMED:
        named.add(stage)
        action = stuck[stage].actions[stuck[stage].position]
        is_forward = action.kind in ("F", "recv_forward")
        home = chain.neighbour(stage, action.chunk, -1 if is_forward else 1)
        assert home is not None, f"{action} of stage {stage} needs nothing"
        words.append(f"stage {stage} waits at {action} for stage {home[0]}")
        stage = home[0]
    return "deadlock: " + ", ".join(words)


def _connect(
    chain: Chain, num_microbatches: int, durations: Durations, has_transfers: bool
) -> list[dict[str, list[Effect]]]:
    """The effect of every kind of action on every chunk, stage by stage."""

    def inboxes() -> list[Arrivals]:
        return [[None] * num_microbatches for _ in range(chain.num_parts)]

    inputs, gradients = inboxes(), inboxes()
    tables = []
    for stage in range(chain.num_stages):
        table: dict[str, list[Effect]] = {
            kind: [NOTHING] * chain.num_chunks
            for kind in ("recv_forward", "recv_backward", "send_forward", "send_backward")
        }
        table |= {"F": [], "B": [], "W": []}
        for chunk in range(chain.num_chunks):
            part = chain.part(stage, chunk)
            time = durations.times[part]
            last = chain.num_parts - 1
            behind = (chain.home(part + 1)[0], inputs[part + 1]) if part < last else None
            before = (chain.home(part - 1)[0], gradients[part - 1]) if part > 0 else None
            need_F = inputs[part] if part > 0 else None
            need_B = gradients[part] if part < last else None
            for kind, need, took, target in (
                ("F", need_F, time.forward_s, behind),
                ("B", need_B, time.backward_s, before),
            ):
                here = target is not None and target[0] == stage
                direct = target is not None and (here or not has_transfers)
                box = target[1] if target is not None else None
                delay = 0.0 if here else durations.p2p_s
                table[kind].append((need, took, box if direct else None, delay))
                if not direct:
                    name = "send_forward" if kind == "F" else "send_backward"
                    table[name][chunk] = (None, 0.0, box, delay)
            table["W"].append((None, time.weight_s, None, 0.0))
        tables.append(table)
    return tables


class Clock:
    """How far one stage has come."""

    def __init__(self, actions: Sequence[Action], table: dict[str, list[Effect]]) -> None:
        self.actions, self.table = actions, table
        self.position, self.time_s = 0, 0.0

    def run(self) -> Iterator[None]:
        """Run all actions; yields where an input is missing, to be asked again later."""
        table, time_s = self.table, 0.0
        for position, (kind, microbatch, chunk) in enumerate(self.actions):
            need, took, target, delay = table[kind][chunk]
            if need is not None:
                arrival = need[microbatch]
                while arrival is None:
                    self.position = position
                    yield
                    arrival = need[microbatch]
                if arrival > time_s:
                    time_s = arrival
            time_s += took
            if target is not None:
                target[microbatch] = time_s + delay
        self.position, self.time_s = len(self.actions), time_s

    def computing(self) -> Iterator[tuple[float, float]]:
        """Start and end of every compute action, once all have run."""
        time_s = 0.0
        for kind, microbatch, chunk in self.actions:
            need, took_s, _, _ = self.table[kind][chunk]
            if need is not None:
                time_s = max(time_s, need[microbatch] or 0.0)
            time_s += took_s
            if kind in COMPUTE:
                yield time_s - took_s, time_s

    def start_s(self) -> float:
        """When the first compute action started."""
        first = next((action for action in self.actions if action.kind == "F"), None)
        if first is None:
            return 0.0
        need = self.table["F"][first.chunk][0]
        return (need[first.microbatch] or 0.0) if need is not None else 0.0
