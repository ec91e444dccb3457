"""What is wrong in a schedule whatever the times: lost, doubled or misplaced actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import get_args

from launcher.plan.schedule_records import Action, Kind, Schedule, ScheduleError

Place = tuple[int, int]
"""(microbatch, chunk)"""

NEEDS = {
    "B": "F",
    "W": "B",
    "send_forward": "F",
    "send_backward": "B",
}
"""What a stage must have done itself before an action on the same microbatch and chunk."""


def check_schedule(schedule: Schedule) -> tuple[int, ...]:
    """Refuse a schedule that cannot be right; return the most that each stage holds at once.

    Counted are microbatches times chunks between their F and their last backward action.
    """
    splits = any(action.kind == "W" for actions in schedule.ranks for action in actions)
    checked = [
        _check_stage(stage, actions, schedule, splits)
        for stage, actions in enumerate(schedule.ranks)
    ]
    for step, direction in ((1, "forward"), (-1, "backward")):
        _check_channels(schedule, checked, step, direction)
    return tuple(stage.peak for stage in checked)


class _CheckedStage:
    """What a walk over one stage has seen so far."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[Place, None]] = {kind: {} for kind in get_args(Kind)}
        self.peak = 0


def _check_stage(
    stage: int, actions: Sequence[Action], schedule: Schedule, splits: bool
) -> _CheckedStage:
    """Every microbatch and chunk once forward, then backward, then W; transfers around them."""
    checked, alive = _CheckedStage(), 0
    seen, needs = checked.seen, _needs(schedule, stage)
    last_kind = "W" if splits else "B"
    for action in actions:
        kind, place = action.kind, (action.microbatch, action.chunk)
        done = seen[kind]
        if place in done:
            raise ScheduleError(f"stage {stage}: {action} is there twice")
        for needed in needs.get((kind, action.chunk), ()):
            if place not in seen[needed]:
                raise ScheduleError(_missing_need(stage, action, needed))
        if kind == "F":
            alive += 1
            if alive > checked.peak:
                checked.peak = alive
        elif kind == last_kind:
            alive -= 1
        done[place] = None
    _check_complete(stage, seen, schedule, ("F", "B", "W") if splits else ("F", "B"))
    _check_ends(stage, seen, schedule)
    return checked


def _needs(schedule: Schedule, stage: int) -> dict[tuple[str, int], tuple[str, ...]]:
    """By kind and chunk: what must have gone before on this stage."""
    table = {}
    for chunk in range(schedule.num_chunks):
        for kind, needed in NEEDS.items():
            table[kind, chunk] = (needed,)
        if _remote(schedule, stage, chunk, -1) is not None:
            table["F", chunk] = ("recv_forward",)
        if _remote(schedule, stage, chunk, 1) is not None:
            table["B", chunk] = ("F", "recv_backward")
    return table


def _remote(schedule: Schedule, stage: int, chunk: int, step: int) -> tuple[int, int] | None:
    """Home of the neighbouring part, where it is on another stage."""
    home = schedule.chain.neighbour(stage, chunk, step)
    return home if home is not None and home[0] != stage else None


def _missing_need(stage: int, action: Action, needed: str) -> str:
    if needed.startswith("recv"):
        return f"stage {stage}: {action} has no receive posted before it"
    same = Action(needed, action.microbatch, action.chunk)  # type: ignore[arg-type]
    return f"stage {stage}: {action} comes before {same}"


def _check_complete(
    stage: int,
    seen: dict[str, dict[Place, None]],
    schedule: Schedule,
    kinds: tuple[Kind, ...],
) -> None:
    """All microbatches of all chunks are there, and no others."""
    count = schedule.num_microbatches
    wanted = {(i, chunk) for chunk in range(schedule.num_chunks) for i in range(count)}
    for kind in kinds:
        if missing := wanted - seen[kind].keys():
            raise ScheduleError(f"stage {stage}: {Action(kind, *min(missing))} is missing")
        if extra := seen[kind].keys() - wanted:
            least = Action(kind, *min(extra))
            limit = f"{count} microbatches"
            if schedule.num_chunks > 1:
                limit += f" of {schedule.num_chunks} chunks"
            raise ScheduleError(f"stage {stage}: {least} is beyond the {limit}")


def _check_ends(stage: int, seen: dict[str, dict[Place, None]], schedule: Schedule) -> None:
    """The first part has none before it and the last one none behind; no stage sends to itself."""
    for step, kinds in (
        (-1, ("recv_forward", "send_backward")),
        (1, ("send_forward", "recv_backward")),
    ):
        for kind in kinds:
            for microbatch, chunk in seen[kind]:
                if 0 <= chunk < schedule.num_chunks:
                    if _remote(schedule, stage, chunk, step) is not None:
                        continue
                action = Action(kind, microbatch, chunk)  # type: ignore[arg-type]
                neighbour = f"stage {stage + step}" if schedule.num_chunks == 1 else "other stage"
                raise ScheduleError(f"stage {stage}: {action} has no {neighbour}")


def _check_channels(
    schedule: Schedule, checked: Sequence[_CheckedStage], step: int, direction: str
) -> None:
    """What one stage sends to another is what that one receives, in the same order.

    Both have run every microbatch, and no stage runs what it has not received or sends what it
    has not run: what is sent is therefore received, but not the other way round.
    """
    sent: dict[tuple[int, int], list[Place]] = {}
    received: dict[tuple[int, int], list[Place]] = {}
    for stage, walked in enumerate(checked):
        targets = [_remote(schedule, stage, chunk, step) for chunk in range(schedule.num_chunks)]
        sources = [_remote(schedule, stage, chunk, -step) for chunk in range(schedule.num_chunks)]
        for microbatch, chunk in walked.seen[f"send_{direction}"]:
            target = targets[chunk]
            assert target is not None, "checked before"
            sent.setdefault((stage, target[0]), []).append((microbatch, target[1]))
        for microbatch, chunk in walked.seen[f"recv_{direction}"]:
            source = sources[chunk]
            assert source is not None, "checked before"
            received.setdefault((source[0], stage), []).append((microbatch, chunk))
    for pair in sorted(sent.keys() | received.keys()):
        _compare(pair, sent.get(pair, []), received.get(pair, []), direction)


def _compare(
    pair: tuple[int, int], sent: list[Place], received: list[Place], direction: str
) -> None:
    if sent == received:
        return
    source, target = pair
    known = set(sent)
    for first, second in zip_longest(sent, received):
        if first == second:
            continue
        receive = Action(f"recv_{direction}", *second)  # type: ignore[arg-type]
        if second not in known:
            raise ScheduleError(f"stage {target}: {receive} has no send on stage {source}")
        send = Action(f"send_{direction}", *first)  # type: ignore[arg-type]
        raise ScheduleError(
            f"stage {target}: {receive} meets {send} of stage {source}: a channel keeps its order"
        )
