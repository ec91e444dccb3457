"""What a search says beside its ranking: rule of thumb, best single change, what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.estimate import Estimate, estimate_layout
from launcher.plan.fill import close_shared, fill_run
from launcher.plan.search import Counts, Ranked, enumerate_lean, rank_layouts
from launcher.plan.search_space import (
    CHOICE_KEYS,
    ORDER,
    TRAIN_KEYS,
    Choice,
    build_space,
    changed,
    choice_of,
    dotted,
    layout_of,
)

GROUPS: tuple[tuple[str, ...], ...] = (
    ("tp",), ("pp",), ("cp",), ("ep",), ("schedule", "vpp"), ("recompute",),
    ("engine", "zero_stage"), ("sequence_parallel",), ("order",), ("micro_batch_size",),
)  # fmt: skip
"""Single changes: keys that only make sense together are one; dp and num_microbatches follow."""

NUM_NEAREST = 3
MOST_DOUBLINGS = 6


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A layout with its prediction."""

    choice: Choice
    run: Run
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a layout."""

    overrides: dict[str, object]
    """What is typed otherwise; what follows from it (dp, num_microbatches) is not in it."""
    after: Predicted


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One thing that would make it fit."""

    override: str
    reason: str
    after: Predicted


@dataclass(frozen=True, kw_only=True)
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
    leanest: Predicted | None
    """Where nothing fits: the layout that takes least."""
    nearest: tuple[Remedy, ...] = ()
    """Where nothing fits: what would."""


def search_layouts(run: Run, fixed: frozenset[str], limit: int = 5) -> Found:
    """The best layouts of a run that has passed the rules; `fixed` are keys of `Choice`."""
    own_run, run = run, close_shared(run)
    thumb = rule_of_thumb(run, fixed)
    whole = thumb.run.train.global_batch_size
    if not set(TRAIN_KEYS) <= fixed and run.train.global_batch_size is None:
        run = changed(run, train={"global_batch_size": whole})
        thumb = _fsdp_instead(run, fixed, thumb)
    ranking = rank_layouts(build_space(run, fixed), limit)
    best = tuple(predict(run, ranked.choice) for ranked in ranking.best)
    own = _own(own_run, run, fixed) if fixed else None
    return Found(
        run=run,
        fixed=tuple(sorted(fixed)),
        best=best,
        counts=ranking.counts,
        rule_of_thumb=thumb,
        own=own,
        best_change=_best_change(own) if own else None,
        leanest=None if best else _leanest(run, fixed),
        nearest=() if best else tuple(_nearest(run, fixed)),
    )


def best_run(run: Run, fixed: frozenset[str]) -> tuple[Run, tuple[str, ...]]:
    """The run in the first layout of the search, and what to say of it; the rule of thumb's where
    nothing fits, so that the plan can say what is missing.
    """
    closed = close_shared(run)
    if run.train.global_batch_size is None and not set(TRAIN_KEYS) <= fixed:
        whole = rule_of_thumb(closed, fixed).run.train.global_batch_size
        closed = changed(closed, train={"global_batch_size": whole})
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


def predict(run: Run, choice: Choice) -> Predicted:
    """By the very function of `launch plan`."""
    filled, layout = layout_of(run, choice)
    return Predicted(choice=choice, run=filled, estimate=estimate_layout(filled, layout))


def rule_of_thumb(run: Run, fixed: frozenset[str]) -> Predicted:
    """TP up to the node, then stages or FSDP until it fits, dp from the rest."""
    thumb = _predict_filled(_plain(run, fixed))
    if run.train.global_batch_size is None:
        return thumb
    return _fsdp_instead(run, fixed, thumb)


def _plain(run: Run, fixed: frozenset[str]) -> Run:
    plain: dict[str, object] = {
        "tp": None, "cp": 1, "ep": 1, "pp": None, "dp": None, "vpp": 1, "schedule": "1f1b",
        "schedule_lines": None, "recompute": None, "engine": "deepspeed", "zero_stage": 1,
        "sequence_parallel": False, "order": ORDER,
    }  # fmt: skip
    plain = {key: value for key, value in plain.items() if key not in fixed}
    if "schedule" in fixed:
        plain.pop("schedule_lines", None)
    if "vpp" in fixed or "schedule" in fixed:  # loading has made them suit each other
        plain.pop("vpp", None)
        plain.pop("schedule", None)
    if "engine" in fixed and run.parallelism.engine == "fsdp2":
        plain.pop("zero_stage", None)
    open_batch = {key: None for key in TRAIN_KEYS if key not in fixed}
    return changed(run, parallelism=plain | {"fill": "tp"}, train=open_batch)


def _predict_filled(run: Run) -> Predicted:
    filled = fill_run(run)
    run = changed(filled.run, parallelism={"fill": "fit"})
    estimate = estimate_layout(run, filled.layout)
    return Predicted(choice=choice_of(run), run=run, estimate=estimate)


def _fsdp_instead(run: Run, fixed: frozenset[str], thumb: Predicted) -> Predicted:
    """FSDP on the same tp, where that is free to choose and better."""
    if fixed & {"engine", "zero_stage", "pp", "schedule", "vpp", "dp"}:
        return thumb
    values = {"pp": 1, "engine": "fsdp2", "zero_stage": 3, "tp": thumb.choice.tp}
    other = changed(_plain(run, fixed), parallelism=values)
    if check_run(other):
        return thumb
    try:
        sharded = _predict_filled(other)
    except ConfigError:
        return thumb
    return max(thumb, sharded, key=_rank)


def _rank(predicted: Predicted) -> tuple[bool, float]:
    return predicted.estimate.memory.fits, predicted.estimate.step.time.tokens_per_s


def _own(own: Run, run: Run, fixed: frozenset[str]) -> Predicted | None:
    """What `launch plan` makes of the user's keys, on the search's batch."""
    whole = run.train.global_batch_size
    if whole is not None:
        own = changed(own, train={"global_batch_size": whole})
    try:
        return _predict_filled(own)
    except ConfigError:
        return None


def _best_change(own: Predicted) -> Change | None:
    """Of all single changes the one that gains most; None where none gains."""
    best: Change | None = None
    for group in GROUPS:
        kept = frozenset(CHOICE_KEYS) - {*group, "dp", "num_microbatches"}
        for ranked in rank_layouts(build_space(own.run, kept), 1).best:
            after = predict(own.run, ranked.choice)
            if _gain(own, after) > 0 and (best is None or _rank(best.after) < _rank(after)):
                best = Change(overrides=_differences(own.choice, ranked, group), after=after)
    return best


def _gain(before: Predicted, after: Predicted) -> float:
    if not before.estimate.memory.fits:
        return 1.0
    return after.estimate.step.time.tokens_per_s - before.estimate.step.time.tokens_per_s


def _differences(own: Choice, ranked: Ranked, group: tuple[str, ...]) -> dict[str, object]:
    after = ranked.choice
    return {
        dotted(key): getattr(after, key)
        for key in group
        if getattr(after, key) != getattr(own, key)
    }


def _leanest(run: Run, fixed: frozenset[str]) -> Predicted | None:
    """What takes least memory of all."""
    choice = enumerate_lean(build_space(run, fixed))
    return None if choice is None else predict(run, choice)


def _nearest(run: Run, fixed: frozenset[str]) -> Iterator[Remedy]:
    """At most three changes that fit, each tried: what is given up first, then what costs more."""
    found = 0
    for override, reason, other, kept in _remedies(run, fixed):
        if found == NUM_NEAREST:
            return
        if check_run(other):
            continue
        for ranked in rank_layouts(build_space(other, kept), 1).best:
            found += 1
            after = predict(other, ranked.choice)
            value = getattr(ranked.choice, override) if override in CHOICE_KEYS else None
            typed = f"{dotted(override)}={value}" if override in CHOICE_KEYS else override
            yield Remedy(override=typed, reason=reason, after=after)


def _remedies(run: Run, fixed: frozenset[str]) -> Iterator[tuple[str, str, Run, frozenset[str]]]:
    """One fixed key given up; more nodes; shorter samples; a leaner optimizer."""
    for key in CHOICE_KEYS:
        if key in fixed:
            yield key, f"{dotted(key)} no longer fixed", run, fixed - {key}
    if run.hardware.network is not None or run.hardware.num_nodes > 1:
        for doubling in range(1, MOST_DOUBLINGS + 1):
            nodes = run.hardware.num_nodes * 2**doubling
            other = changed(run, hardware={"num_nodes": nodes})
            if _fits(other, fixed):
                yield f"hardware.num_nodes={nodes}", "more nodes", other, fixed
                break
    length = run.train.sequence_length or 1
    while length > 128:
        length //= 2
        other = changed(run, train={"sequence_length": length})
        if _fits(other, fixed):
            yield f"train.sequence_length={length}", "shorter samples", other, fixed
            break
    gpu = run.hardware.gpu
    assert gpu is not None
    for times in (2, 4, 8, 16, 32):
        larger = gpu.model_copy(update={"memory_bytes": gpu.memory_bytes * times})
        other = changed(run, hardware={"gpu": larger})
        if _fits(other, fixed):
            override = f"hardware.gpu.memory_bytes={larger.memory_bytes}"
            yield override, "devices with more memory", other, fixed
            break


def _fits(run: Run, fixed: frozenset[str]) -> bool:
    if check_run(run):
        return False
    choice = enumerate_lean(build_space(run, fixed))
    return choice is not None and predict(run, choice).estimate.memory.fits
