"""What is wrong in a schedule whatever the times: lost, doubled or misplaced actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NoReturn, get_args

from launcher.plan.schedule_records import Action, Chain, Kind, Orders, Schedule, ScheduleError
from launcher.plan.units import plural

NEEDS: dict[Kind, Kind] = {
    "B": "F",
    "W": "B",
    "send_forward": "F",
    "send_backward": "B",
}
"""What a stage must have done itself before an action on the same microbatch and chunk."""

DIRECTIONS: dict[Kind, int] = {
    "send_forward": 1,
    "recv_backward": 1,
    "recv_forward": -1,
    "send_backward": -1,
}
"""To which neighbour a transfer leads: the part behind (1) or before (-1)."""


def check_schedule(schedule: Schedule) -> tuple[int, ...]:
    """Refuse a schedule that cannot be right; return the most that each stage holds at once.

    Counted are microbatches times chunks between their F and their last backward action.
    """
    splits = any(action.kind == "W" for action in schedule.ranks[0])
    channels = _Channels(schedule)
    peaks = [
        _check_stage(stage, actions, schedule, splits, channels)
        for stage, actions in enumerate(schedule.ranks)
    ]
    channels.check()
    return tuple(peaks)


def check_orders(chain: Chain, num_microbatches: int, orders: Orders) -> None:
    """Refuse compute orders, as yet without transfers, that are incomplete or out of order."""
    wanted = {(i, chunk) for chunk in range(chain.num_chunks) for i in range(num_microbatches)}
    splits = any(action.kind == "W" for order in orders for action in order)
    kinds: tuple[Kind, ...] = ("F", "B", "W") if splits else ("F", "B")
    for stage, order in enumerate(orders):
        seen: dict[Kind, set[tuple[int, int]]] = {kind: set() for kind in ("F", "B", "W")}
        for action in order:
            place, need = (action.microbatch, action.chunk), NEEDS.get(action.kind)
            if place in seen[action.kind]:
                raise ScheduleError(f"stage {stage}: {action} is there twice")
            if need and place not in seen[need]:
                _refuse_early(stage, action, need)
            seen[action.kind].add(place)
        for kind in kinds:
            if missing := wanted - seen[kind]:
                raise ScheduleError(f"stage {stage}: {Action(kind, *min(missing))} is missing")


@dataclass(slots=True)
class _Row:
    """What is known about one kind of action on one chunk of one stage."""

    done: dict[int, None] = field(default_factory=dict)
    """Microbatches that were there already."""
    needs: tuple[dict[int, None], ...] = ()
    """`done` of what must come before."""
    names: tuple[Kind, ...] = ()
    """Their kinds, for the message."""
    growth: int = 0
    """How much more the stage holds afterwards."""
    log: list[int] | None = None
    """The channel's record of a transfer."""
    chunk_at_receiver: int = 0


def _check_stage(
    stage: int, actions: Sequence[Action], schedule: Schedule, splits: bool, channels: _Channels
) -> int:
    """Every microbatch and chunk once forward, then backward, then W; transfers around them."""
    table = _build_table(stage, schedule, splits, channels)
    alive, peak, num_chunks = 0, 0, schedule.num_chunks
    for action in actions:
        kind, microbatch, chunk = action
        if not 0 <= chunk < num_chunks:
            _refuse_extra(stage, action, schedule)
        row = table[kind][chunk]
        if row.needs:
            for position, before in enumerate(row.needs):
                if microbatch not in before:
                    _refuse_early(stage, action, row.names[position])
        if microbatch in row.done:
            raise ScheduleError(f"stage {stage}: {action} is there twice")
        row.done[microbatch] = None
        if row.growth:
            alive += row.growth
            if alive > peak:
                peak = alive
        elif row.log is not None:
            row.log.append(microbatch * num_chunks + row.chunk_at_receiver)
    _check_complete(stage, table, schedule, ("F", "B", "W") if splits else ("F", "B"))
    _check_ends(stage, table, schedule)
    return peak


def _build_table(
    stage: int, schedule: Schedule, splits: bool, channels: _Channels
) -> dict[Kind, list[_Row]]:
    """A row for every kind and chunk."""
    chunks = range(schedule.num_chunks)
    table: dict[Kind, list[_Row]] = {kind: [_Row() for _ in chunks] for kind in get_args(Kind)}
    for chunk in chunks:
        needs: dict[Kind, tuple[Kind, ...]] = {kind: (need,) for kind, need in NEEDS.items()}
        if _remote(schedule, stage, chunk, -1) is not None:
            needs["F"] = ("recv_forward",)
        if _remote(schedule, stage, chunk, 1) is not None:
            needs["B"] = ("F", "recv_backward")
        for kind, names in needs.items():
            table[kind][chunk].names = names
            table[kind][chunk].needs = tuple(table[name][chunk].done for name in names)
        table["F"][chunk].growth = 1
        table["W" if splits else "B"][chunk].growth = -1
        for kind in DIRECTIONS:
            channels.record(stage, kind, chunk, table[kind][chunk])
    return table


def _remote(schedule: Schedule, stage: int, chunk: int, step: int) -> tuple[int, int] | None:
    """Home of the neighbouring part, where it is on another stage."""
    home = schedule.chain.neighbour(stage, chunk, step)
    return home if home is not None and home[0] != stage else None


def _refuse_early(stage: int, action: Action, needed: Kind) -> NoReturn:
    if needed.startswith("recv"):
        raise ScheduleError(f"stage {stage}: {action} has no receive posted before it")
    same = Action(needed, action.microbatch, action.chunk)
    raise ScheduleError(f"stage {stage}: {action} comes before {same}")


def _refuse_extra(stage: int, action: Action, schedule: Schedule) -> NoReturn:
    limit = f"{schedule.num_microbatches} {plural('microbatch', schedule.num_microbatches)}"
    if schedule.num_chunks > 1 or action.chunk:
        limit += f" and {schedule.num_chunks} chunks"
    raise ScheduleError(f"stage {stage}: {action} is beyond the {limit}")


def _check_complete(
    stage: int, table: dict[Kind, list[_Row]], schedule: Schedule, kinds: tuple[Kind, ...]
) -> None:
    """All microbatches of all chunks are there, and no others."""
    wanted = set(range(schedule.num_microbatches))
    for kind in kinds:
        for chunk, row in enumerate(table[kind]):
            if missing := wanted - row.done.keys():
                least = Action(kind, min(missing), chunk)
                raise ScheduleError(f"stage {stage}: {least} is missing")
            if extra := row.done.keys() - wanted:
                _refuse_extra(stage, Action(kind, min(extra), chunk), schedule)


def _check_ends(stage: int, table: dict[Kind, list[_Row]], schedule: Schedule) -> None:
    """The first part has none before it and the last none behind; no stage sends to itself."""
    for kind, step in DIRECTIONS.items():
        for chunk, row in enumerate(table[kind]):
            if row.done and _remote(schedule, stage, chunk, step) is None:
                action = Action(kind, next(iter(row.done)), chunk)
                whom = f"stage {stage + step}" if schedule.num_chunks == 1 else "other stage"
                raise ScheduleError(f"stage {stage}: {action} has no {whom}")


class _Channels:
    """What was sent and what was received, between every two stages in either direction.

    All stages have run every microbatch, and no stage runs what it has not received or sends what
    it has not run: what is sent is therefore received, but not the other way round.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.logs: dict[tuple[str, int, int], tuple[list[int], list[int]]] = {}

    def record(self, stage: int, kind: Kind, chunk: int, row: _Row) -> None:
        """Let a row write down its transfers, in terms of the receiver."""
        other = _remote(self.schedule, stage, chunk, DIRECTIONS[kind])
        if other is None:
            return
        what, _, direction = kind.partition("_")
        sends = what == "send"
        pair = (stage, other[0]) if sends else (other[0], stage)
        logs = self.logs.setdefault((direction, *pair), ([], []))
        row.log = logs[0 if sends else 1]
        row.chunk_at_receiver = other[1] if sends else chunk

    def check(self) -> None:
        """The receives of a channel are posted in the order of its sends."""
        for (direction, source, target), (sent, received) in self.logs.items():
            if sent != received:
                self._refuse(direction, source, target, sent, received)

    def _refuse(
        self, direction: str, source: int, target: int, sent: list[int], received: list[int]
    ) -> NoReturn:
        first, second = next(pair for pair in zip_longest(sent, received) if pair[0] != pair[1])
        receive = self._name("recv", direction, second)
        if second not in sent:
            raise ScheduleError(f"stage {target}: {receive} has no send on stage {source}")
        send = self._name("send", direction, first)
        raise ScheduleError(
            f"stage {target}: {receive} meets {send} of stage {source}: a channel keeps its order"
        )

    def _name(self, what: str, direction: str, code: int) -> str:
        """Of a transfer, with the receiver's chunk."""
        microbatch, chunk = divmod(code, self.schedule.num_chunks)
        return f"{what}_{direction}({microbatch}{f'.{chunk}' if chunk else ''})"
