"""What `launch search` answers: the ranking, and the rule of thumb and best change beside it."""

from __future__ import annotations

from launcher.config.rules import get_value, with_value
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.frozen import frozen
from launcher.plan.fill import close_shared, fill_run
from launcher.plan.search import rank_layouts
from launcher.plan.search_choice import CHOICE_KEYS, Choice, changed, choice_of, dotted
from launcher.plan.search_cost import Coster
from launcher.plan.search_leanest import Leanest, leanest_of
from launcher.plan.search_nodes import Counts, Ranked, Ranking
from launcher.plan.search_predict import (
    Predicted,
    Weighed,
    close_batch,
    predict,
    predict_filled,
    rule_of_thumb,
    speed,
    weigh,
    weigh_thumb,
    with_batch,
    with_own_batch,
)
from launcher.plan.search_remedy import Misfit, Remedy, find_nearest
from launcher.plan.search_space import build_space

GROUPS: tuple[tuple[str, ...], ...] = (
    ("tp",), ("pp",), ("cp",), ("ep",), ("schedule", "vpp"), ("recompute",),
    ("engine", "zero_stage"), ("offload",), ("sequence_parallel",), ("order",),
    ("micro_batch_size",),
)  # fmt: skip
"""Single changes: keys that only make sense together are one; dp and num_microbatches follow."""


@frozen
class Change:
    """One change of a layout."""

    overrides: dict[str, object]
    """What is typed otherwise; what follows from it (dp, num_microbatches) is in it where that was
    typed, too, and the batch or another open key where the plan would fill it otherwise now."""
    after: Predicted


@frozen
class Found:
    """The answer of `launch search`."""

    run: Run
    """What all layouts share."""
    fixed: tuple[str, ...]
    best: tuple[Predicted, ...]
    counts: Counts
    rule_of_thumb: Predicted
    own: Predicted | None
    """The user's own layout, where some of it was given."""
    best_change: Change | None
    leanest: Weighed | None
    """Where nothing fits: the layout that takes least."""
    nearest: tuple[Remedy, ...] = ()
    """Where nothing fits: what would."""


def search_layouts(
    run: Run, fixed: frozenset[str], limit: int = 5, has_planned: bool = False
) -> Found:
    """The best layouts of a run that has passed the rules; `fixed` are keys of `Choice`.

    `has_planned`: also what can be planned, but not be run yet.
    """
    asked = close_shared(run)
    closed, thumb = close_batch(with_own_batch(asked, fixed), fixed)
    ranking, leanest = _rank(closed, thumb, fixed, limit, has_planned)
    own = _own(run, closed) if fixed else None
    nearest: tuple[Remedy, ...] = ()
    if leanest is not None and leanest.choice is not None:
        nearest = find_nearest(
            Misfit(
                asked=asked, run=closed, fixed=fixed, has_planned=has_planned, leanest=leanest
            )
        )  # fmt: skip
    return Found(
        run=closed,
        fixed=tuple(sorted(fixed)),
        best=tuple(predict(closed, ranked.choice) for ranked in ranking.best),
        counts=ranking.counts,
        rule_of_thumb=thumb,
        own=own,
        best_change=_best_change(run, own, has_planned) if own else None,
        leanest=weigh(closed, leanest.choice) if leanest and leanest.choice else None,
        nearest=nearest,
    )


def _rank(
    run: Run, thumb: Predicted, fixed: frozenset[str], limit: int, has_planned: bool = False
) -> tuple[Ranking, Leanest | None]:
    """The ranking; where nothing fits, the leanest layout.

    Where the rule of thumb fits something does, and the leanest layout is not asked for.
    """
    space, usable = build_space(run, fixed, has_planned), thumb.estimate.memory.usable_bytes
    leanest = None if thumb.estimate.memory.fits else leanest_of(space, enough=usable)
    if leanest is None or (leanest.choice is not None and leanest.peak_bytes <= usable):
        return rank_layouts(space, limit), None
    return Ranking(best=(), counts=leanest.counts), leanest


def best_run(run: Run, fixed: frozenset[str]) -> tuple[Run, tuple[str, ...]]:
    """The run in the first layout of the search, and what to say of it; the rule of thumb's where
    nothing fits, so that the plan can say what is missing.
    """
    closed = with_own_batch(close_shared(run), fixed)
    if closed.train.global_batch_size is None:
        closed = with_batch(closed, fixed, weigh_thumb(closed, fixed).run)
    ranking = rank_layouts(build_space(closed, fixed), 1)
    if not ranking.best:
        return rule_of_thumb(closed, fixed).run, (
            "parallelism=auto: nothing fits, so this is the rule of thumb; `launch search` says "
            "what would",
        )
    chosen = predict(closed, ranking.best[0].choice)
    counts = ranking.counts
    return chosen.run, (
        f"parallelism=auto: the fastest layout by prediction ({counts.examined:,} partial layouts "
        f"examined, {counts.simulated} simulated)",
    )


def _own(own: Run, run: Run) -> Predicted | None:
    """What `launch plan` makes of the user's keys, on the search's batch."""
    whole = run.train.global_batch_size
    if whole is not None:
        own = changed(own, train={"global_batch_size": whole})
    try:
        return predict_filled(own)
    except ConfigError:
        return None


def _best_change(run: Run, own: Predicted, has_planned: bool) -> Change | None:
    """Of all single changes the one that gains most; None where none gains."""
    best: Change | None = None
    hardware = own.run.hardware
    coster = Coster(own.run, hardware.num_nodes * (hardware.gpus_per_node or 1))
    of_file = FILE_KEYS if own.run.parallelism.schedule_lines is not None else frozenset()
    for group in GROUPS:
        kept = frozenset(CHOICE_KEYS) - ({*group, "dp", "num_microbatches"} - of_file)
        for ranked in rank_layouts(build_space(own.run, kept, has_planned), 1, coster).best:
            if ranked.choice == own.choice:
                continue
            after = predict(own.run, ranked.choice)
            if _gains(own, after) and (best is None or speed(best.after) < speed(after)):
                best = Change(overrides=_differences(own.choice, ranked, group), after=after)
    return best and Change(overrides=_as_typed(run, best), after=best.after)


FILE_KEYS = frozenset({"schedule", "pp", "vpp", "num_microbatches"})
"""What the file of a schedule decides."""


def _as_typed(run: Run, change: Change) -> dict[str, object]:
    """The change with the fewest other keys that, typed beside the user's, make this layout of it.

    pp=1 beside dp=4 on eight devices -> pp=1 dp=8
    """
    after, typed = change.after, change.overrides
    batch = {} if run.train.global_batch_size else {BATCH: after.run.train.global_batch_size}
    found = {dotted(key): getattr(after.choice, key) for key in CHOICE_KEYS}
    others = {key: value for key, value in found.items() if get_value(run, key) != value}
    follows = {
        key: others[key] for key in FOLLOWS if key in others and get_value(run, key) is not None
    }
    for more in ({}, batch, follows, batch | follows, batch | others):
        words = typed | more
        if _makes(run, words) == after.choice:
            return words
    return typed


FOLLOWS = ("parallelism.dp", "train.num_microbatches")
BATCH = "train.global_batch_size"


def _makes(run: Run, words: dict[str, object]) -> Choice | None:
    """The layout that `launch plan` makes of a run with these words; None where it refuses them."""
    if isinstance(words.get("parallelism.schedule"), str):
        run = changed(run, parallelism={"schedule_lines": None})
    for key, value in words.items():
        run = with_value(run, key, value)
    try:
        return choice_of(fill_run(run).run)
    except ConfigError:
        return None


def _gains(before: Predicted, after: Predicted) -> bool:
    if not before.estimate.memory.fits:
        return True
    return after.estimate.step.time.tokens_per_s > before.estimate.step.time.tokens_per_s


def _differences(own: Choice, ranked: Ranked, group: tuple[str, ...]) -> dict[str, object]:
    after = ranked.choice
    return {
        dotted(key): getattr(after, key)
        for key in group
        if getattr(after, key) != getattr(own, key)
    }
