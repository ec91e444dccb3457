"""A schedule from a file: text in, a checked schedule out.

CSV: one line per stage with its compute actions in order, kind and microbatch, `.` and the chunk
where it is not 0. Lines that start with # are comments, but for `# placement: v`:

    # placement: v
    F0, F0.1, B0.1, W0.1, B0, W0

JSON: {"placement": "loop" or "v", "stages": [["F0", "B0"], ...]}; placement may be left out.

Without W actions, B is the whole backward; with them, B gives the gradients of the inputs and W
those of the weights. Sends and receives are not written down: they follow from the order. Chunks
are counted from 0 in the order of the model (loop), or down and up again (v).
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from launcher.plan.schedule_check import check_orders
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_records import (
    Action,
    Chain,
    Orders,
    Schedule,
    ScheduleError,
    equal_times,
)
from launcher.plan.schedule_transfers import finish_schedule

WORD = re.compile(r"([FBW])(0|[1-9][0-9]{0,6})(?:\.([1-9][0-9]{0,2}))?", re.ASCII)
PLACEMENT = re.compile(r"#\s*placement\s*[:=]\s*(\S+)\s*")


def parse_schedule(name: str, text: str) -> Schedule:
    """The schedule that a file describes; name decides between .json and .csv.

    It is checked, and walked once: what is returned can run. Raises ScheduleError.
    """
    placement, stages = _read_json(text) if name.endswith(".json") else _read_csv(text)
    if placement not in ("loop", "v"):
        raise ScheduleError(f"placement is loop or v, not {placement!r}")
    if not stages:
        raise ScheduleError("the file has no stage")
    action = cache(Action)
    orders = [
        [_parse_action(word, f"stage {stage}", action) for word in words]
        for stage, words in enumerate(stages)
    ]
    chain = Chain(
        num_stages=len(orders),
        num_chunks=1 + max((each.chunk for order in orders for each in order), default=0),
        placement="v" if placement == "v" else "loop",
    )
    count = 1 + max((each.microbatch for order in orders for each in order), default=0)
    check_orders(chain, count, orders)
    _check_runs(chain, count, orders)
    return finish_schedule(name, chain, count, orders, action)


def write_schedule(schedule: Schedule) -> str:
    """The CSV text that `parse_schedule` reads back into the same schedule."""
    lines = [
        ", ".join(str(each) for each in actions if each.kind in ("F", "B", "W"))
        for actions in schedule.ranks
    ]
    head = ["# placement: v"] if schedule.placement == "v" else []
    return "\n".join([*head, *lines]) + "\n"


def _read_csv(text: str) -> tuple[str, list[list[str]]]:
    placement, stages = "loop", []
    for line in text.splitlines():
        line = line.strip().lstrip("\ufeff")
        if found := PLACEMENT.fullmatch(line):
            placement = found[1]
        elif line and not line.startswith("#"):
            stages.append([word.strip() for word in line.rstrip(",").split(",")])
    return placement, stages


def _read_json(text: str) -> tuple[str, list[list[str]]]:
    try:
        document: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ScheduleError(f"not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("stages"), list):
        raise ScheduleError('an object with "stages", a list of lists, is wanted')
    if unknown := sorted(document.keys() - {"placement", "stages"}):
        raise ScheduleError(f"no such key: {unknown[0]!r}; legal are 'placement' and 'stages'")
    for stage, words in enumerate(document["stages"]):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ScheduleError(f'stage {stage}: a list of actions such as "F0" is wanted')
    return str(document.get("placement", "loop")), document["stages"]


def _parse_action(word: str, where: str, action: Any) -> Action:
    found = WORD.fullmatch(word)
    if found is None:
        raise ScheduleError(
            f"{where}: {word!r} is no action; F, B or W, the microbatch, and .chunk where it is "
            "not 0, are: F0, B12, W3.1"
        )
    made: Action = action(found[1], int(found[2]), int(found[3] or 0))
    return made


def _check_runs(chain: Chain, num_microbatches: int, orders: Orders) -> None:
    """Refuse stages that wait for each other, before transfers are put in."""
    durations = Durations(times=equal_times(chain.num_parts))
    walk(chain, num_microbatches, orders, durations, has_transfers=False)
