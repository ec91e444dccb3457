"""What is typed for a warning, beside what the user has given: other keys make room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import combinations
from operator import itemgetter
from typing import Any

from launcher.config.rules import get_value, obeys_rules, with_value
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.audit import has_even_rails
from launcher.plan.collectives import Links
from launcher.plan.estimate import estimate_layout, estimate_layout_memory
from launcher.plan.execution import runtime_job
from launcher.plan.fill import Filled, fill_run
from launcher.plan.records import Layout, Warning
from launcher.plan.step_time import find_links

FOLLOWS = ("train.global_batch_size", "train.num_microbatches", "parallelism.dp", "parallelism.pp")
"""Keys that are solved from the others where they are open."""
AXES = ("parallelism.tp", "parallelism.pp", "parallelism.dp")
DEGREES = ("parallelism.tp", *FOLLOWS)
"""What is opened where opening those that follow is not enough."""


def make_room(
    asked: Run, filled: Run, warnings: Sequence[Warning], tokens_per_s: float
) -> tuple[Warning, ...]:
    """Warnings with the first of their fixes that is legal and mends what it is for.

    Fixes also open what they would contradict:
    num_microbatches=16 beside a given global_batch_size -> ... train.global_batch_size=null
    """
    ids = {warning.id for warning in warnings}
    found = [
        replace(each, fix=_best_fix(asked, filled, each, ids, tokens_per_s), others=())
        for each in warnings
    ]
    return tuple(each for each in found if each.fix or each.id not in ONLY_WITH_FIX)


def _best_fix(asked: Run, filled: Run, warning: Warning, ids: Set[str], tokens_per_s: float) -> str:
    """The first that mends it and is faster, else one that mends it (the fastest for a link), else
    none. A plan that fits still fits with it.

    Of what is there for speed only, and of experts, whose gradients travel the farther the nearer
    their tokens stay: empty where nothing that was tried is faster.
    """
    for_speed, must_fit = warning.id in FOR_SPEED, "does-not-fit" not in ids
    fixes = [warning.fix, *warning.others]
    if not for_speed and warning.id not in MENDED:
        return next((words for fix in fixes if (words := _with_room(asked, filled, fix))), "")
    beside = partial(_pins, asked, filled) if for_speed else partial(_openings, asked)
    more = [f"{fix} {words}" for fix in fixes if (words := beside(fix))]
    mending: list[tuple[float, str]] = []
    for position, fix in enumerate([*fixes, *more]):
        if mending and position == len(fixes):
            break
        words = _with_room(asked, filled, fix)
        closed = words and _filled(typed(asked, words))
        if not (words and closed):
            continue
        if not (for_speed or MENDED[warning.id](closed.run, closed.layout)):
            continue
        if not (for_speed or must_fit):
            return words
        found = estimate_layout(closed.run, closed.layout)
        fits = found.memory.fits or not must_fit
        if not fits:
            continue
        speed = found.step.time.tokens_per_s
        if speed > tokens_per_s:
            return words
        if not for_speed:
            mending.append((speed, words))
    if warning.id in OF_LINKS:
        speed, words = max(mending, key=itemgetter(0), default=(0.0, ""))
        return words if speed >= tokens_per_s or warning.id != "ep-crosses-nodes" else ""
    return mending[0][1] if mending else ""


def _filled(run: Run) -> Filled | None:
    """The run, closed; None where it is not legal."""
    try:
        return fill_run(run)
    except ConfigError:
        return None


FOR_SPEED = (
    "serial-pipeline", "few-microbatches", "uneven-pipeline", "uneven-stages",
    "communication-bound", "idle-memory", "kv-heads-replicated", "experts-everywhere",
    "stage-of-unequal-devices",
)  # fmt: skip
"""Warnings whose fixes are there to gain speed."""

ONLY_WITH_FIX = ("idle-memory", "experts-everywhere")
"""Warnings of what is as it should be where nothing that was tried is faster."""


OF_LINKS = ("tp-crosses-nodes", "ep-crosses-nodes", "uneven-rails")
"""Warnings of one way to place the same devices: any that mends it costs the same."""


def _pins(asked: Run, filled: Run, fix: str) -> str:
    """What was open and must stay as it was filled: another fill may choose another layout."""
    return " ".join(
        f"{key}={get_value(filled, key)}"
        for key in ("parallelism.tp", "parallelism.pp", "parallelism.recompute")
        if get_value(asked, key) is None and key not in fix
    )


def _openings(asked: Run, fix: str) -> str:
    """What else makes room, where a fix alone would no longer fit."""
    return " ".join(
        f"{key}=null"
        for key in ("parallelism.pp", "parallelism.recompute")
        if get_value(asked, key) is not None and key not in fix
    )


def _has_ram(run: Run, layout: Layout) -> bool:
    assert run.hardware.node is not None
    needed = estimate_layout_memory(run, layout).host_bytes_per_node
    return needed <= run.hardware.node.host_memory_bytes


MENDED: dict[str, Callable[[Run, Layout], bool]] = {
    "does-not-fit": lambda run, layout: estimate_layout_memory(run, layout).fits,
    "tp-crosses-nodes": lambda run, layout: not links_of(run, layout).tp.crosses_nodes,
    "ep-crosses-nodes": lambda run, layout: not links_of(run, layout).ep.crosses_nodes,
    "uneven-rails": lambda run, layout: (
        not links_of(run, layout).dp.crosses_nodes or has_even_rails(layout)
    ),
    "host-memory": _has_ram,
}
"""Whether a layout is free of what a warning says."""


def links_of(run: Run, layout: Layout) -> Links:
    """The links of a closed layout's axes."""
    return find_links(runtime_job(run, layout))


def typed(asked: Run, words: str) -> Run:
    """The run with the words of a fix."""
    for word in words.split():
        field, _, value = word.partition("=")
        asked = with_value(asked, field, _read(value))
    return asked


def _with_room(asked: Run, filled: Run, fix: str) -> str | None:
    """The fix with the fewest keys opened that makes it legal; None where none does.

    First those that follow from others are opened; then any degree, and a layout is looked for.
    """
    words = [word.partition("=") for word in fix.split()]
    if not all("." in field for field, _, _ in words):
        return fix  # A group, or words: not a matter of keys.
    changed, named = typed(asked, fix), {field for field, _, _ in words}
    given = [key for key in FOLLOWS if key not in named and get_value(asked, key) is not None]
    for count in range(3):
        for keys in combinations(given, count):
            if obeys_rules(_close(_open(changed, keys), filled)):
                return " ".join([fix, *(f"{key}=null" for key in keys)])
    given = [key for key in DEGREES if key not in named and get_value(asked, key) is not None]
    for count in range(len(given) + 1):
        for keys in combinations(given, count):
            if _filled(_open(changed, keys)) is not None:
                return " ".join([fix, *(f"{key}=null" for key in keys)])
    return None


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
