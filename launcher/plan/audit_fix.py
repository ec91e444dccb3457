"""What is typed for a warning, beside what the user has given: other keys make room for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from launcher.config.rules import get_value, obeys_rules, with_value
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.fill import fill_run
from launcher.plan.records import Warning

FOLLOWS = ("train.global_batch_size", "train.num_microbatches", "parallelism.dp", "parallelism.pp")
"""Keys that are solved from the others where they are open."""
AXES = ("parallelism.tp", "parallelism.pp", "parallelism.dp")
DEGREES = ("parallelism.tp", *FOLLOWS)
"""What is opened where opening those that follow is not enough."""


def make_room(asked: Run, filled: Run, warnings: Sequence[Warning]) -> tuple[Warning, ...]:
    """Warnings whose fixes also open what they would contradict.

    num_microbatches=16 beside a given global_batch_size -> ... train.global_batch_size=null
    """
    return tuple(replace(each, fix=_with_room(asked, filled, each.fix)) for each in warnings)


def _with_room(asked: Run, filled: Run, fix: str) -> str:
    """The fix with the fewest keys opened that makes it legal; as it is where none does.

    First those that follow from others are opened; then any degree, and a layout is looked for.
    """
    words = [word.partition("=") for word in fix.split()]
    if not all("." in field for field, _, _ in words):
        return fix  # A group, or words: not a matter of keys.
    changed, named = asked, {field for field, _, _ in words}
    for field, _, typed in words:
        changed = with_value(changed, field, _read(typed))
    given = [key for key in FOLLOWS if key not in named and get_value(asked, key) is not None]
    for count in range(3):
        for keys in combinations(given, count):
            if obeys_rules(_close(_open(changed, keys), filled)):
                return " ".join([fix, *(f"{key}=null" for key in keys)])
    given = [key for key in DEGREES if key not in named and get_value(asked, key) is not None]
    for count in range(len(given) + 1):
        for keys in combinations(given, count):
            if _can_be_filled(_open(changed, keys)):
                return " ".join([fix, *(f"{key}=null" for key in keys)])
    return fix


def _can_be_filled(run: Run) -> bool:
    try:
        fill_run(run)
    except ConfigError:
        return False
    return True


def _open(run: Run, keys: Sequence[str]) -> Run:
    for key in keys:
        run = with_value(run, key, None)
    return run


def _close(run: Run, filled: Run) -> Run:
    """Open axes as they were filled, but for the last one, which takes the devices that are left:
    so that rules can judge them.
    """
    open_axes = [axis for axis in AXES if get_value(run, axis) is None]
    if not open_axes:
        return run
    for axis in open_axes[:-1]:
        run = with_value(run, axis, get_value(filled, axis))
    left = (run.hardware.gpus_per_node or 1) * run.hardware.num_nodes // run.parallelism.cp
    for axis in AXES:
        left //= get_value(run, axis) or 1
    return with_value(run, open_axes[-1], max(1, left))


def _read(typed: str) -> Any:
    """Numbers, null, lists of names and names: what fixes are made of."""
    if typed.startswith("["):
        return tuple(_read(part) for part in typed.strip("[]").split(","))
    return None if typed == "null" else int(typed) if typed.isdigit() else typed
