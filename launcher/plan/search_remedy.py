"""What a search says where nothing fits: what the leanest layout lacks, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from launcher.config.quoting import typed_value
from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.frozen import frozen
from launcher.plan.memory import USABLE_SHARE, usable_bytes
from launcher.plan.search import rank_layouts
from launcher.plan.search_choice import CHOICE_KEYS, TRAIN_KEYS, changed, dotted
from launcher.plan.search_leanest import Leanest, leanest_of, may_fit
from launcher.plan.search_predict import Weighed, weigh, weigh_thumb, with_batch
from launcher.plan.search_space import build_space

NUM_NEAREST = 3
MOST_DOUBLINGS = 6
SHORTEST = 128
"""Tokens per sample below which no shorter ones are tried."""


@frozen
class Remedy:
    """One thing that would make it fit."""

    override: str
    reason: str
    after: Weighed
    """A layout that fits then; a search finds the fastest."""


@frozen
class Misfit:
    """A search in which nothing fits."""

    asked: Run
    """As typed, its batch perhaps open."""
    run: Run
    """What all layouts share, the batch closed."""
    fixed: frozenset[str]
    has_planned: bool
    leanest: Leanest
    """Of all layouts."""


def find_nearest(misfit: Misfit) -> tuple[Remedy, ...]:
    """At most three changes that fit, each tried: what is given up first, then what costs more."""
    return tuple(islice(_remedies(misfit), NUM_NEAREST))


def _remedies(misfit: Misfit) -> Iterator[Remedy]:
    yield from _freed(misfit)
    for attempts in (_more_nodes(misfit), _shorter(misfit), _larger(misfit), _shallower(misfit)):
        for override, reason, other in attempts:
            after = _try(misfit, other)
            if after is not None:
                yield Remedy(override=override, reason=reason, after=after)
                break


def _freed(misfit: Misfit) -> Iterator[Remedy]:
    """Fixed keys given up, one at a time, for the value of the fastest layout that fits then."""
    run, usable = misfit.run, _usable(misfit.run)
    for key in CHOICE_KEYS:
        if key not in misfit.fixed:
            continue
        space = build_space(run, misfit.fixed - {key}, misfit.has_planned)
        if leanest_of(space, enough=usable, most=usable).choice is None:
            continue
        for ranked in rank_layouts(space, 1).best:
            value = getattr(ranked.choice, key)
            section = "train" if key in TRAIN_KEYS else "parallelism"
            if _try(misfit, changed(misfit.asked, **{section: {key: value}})) is not None:
                yield Remedy(
                    override=f"{dotted(key)}={typed_value(value)}",
                    reason=f"{dotted(key)} no longer fixed",
                    after=weigh(run, ranked.choice),
                )


def _try(misfit: Misfit, other: Run) -> Weighed | None:
    """A layout of this run that fits: the rule of thumb's, or else the first lean one."""
    if check_run(other) or not may_fit(build_space(other, misfit.fixed, misfit.has_planned)):
        return None
    try:
        thumb = weigh_thumb(other, misfit.fixed)
    except ConfigError:
        return None
    if thumb.memory.fits:
        return thumb
    run = with_batch(other, misfit.fixed, thumb.run)
    usable, known = _usable(run), misfit.leanest
    if known.choice is not None and known.peak_bytes <= usable and _is_larger(misfit.run, run):
        return weigh(run, known.choice)
    space = build_space(run, misfit.fixed, misfit.has_planned)
    found = leanest_of(space, enough=usable, most=usable).choice
    return None if found is None else weigh(run, found)


def _is_larger(run: Run, other: Run) -> bool:
    """Whether nothing has changed but the memory of the devices."""
    return bool(changed(other, hardware={"gpu": run.hardware.gpu}) == run)


_Attempts = Iterator[tuple[str, str, Run]]


def _more_nodes(misfit: Misfit) -> _Attempts:
    hardware = misfit.asked.hardware
    if hardware.network is None and hardware.num_nodes == 1:
        return
    for doubling in range(1, MOST_DOUBLINGS + 1):
        nodes = hardware.num_nodes * 2**doubling
        other = changed(misfit.asked, hardware={"num_nodes": nodes})
        yield f"hardware.num_nodes={nodes}", "more nodes", other


def _shorter(misfit: Misfit) -> _Attempts:
    if misfit.leanest.state_bytes > _usable(misfit.run):
        return
    length = misfit.run.train.sequence_length or 1
    while length > SHORTEST:
        length //= 2
        other = changed(misfit.asked, train={"sequence_length": length})
        yield f"train.sequence_length={length}", "shorter samples", other


def _larger(misfit: Misfit) -> _Attempts:
    """Of so many whole GiB as the leanest layout needs."""
    gpu = misfit.asked.hardware.gpu
    assert gpu is not None
    gib = -int(-misfit.leanest.peak_bytes / USABLE_SHARE // 2**30)
    larger = gpu.model_copy(update={"memory_bytes": gib * 2**30})
    override = f"hardware.gpu.memory_bytes={larger.memory_bytes}"
    yield override, f"devices of {gib:,} GiB", changed(misfit.asked, hardware={"gpu": larger})


def _shallower(misfit: Misfit) -> _Attempts:
    layers = misfit.asked.model.num_layers
    while layers > 1:
        layers //= 2
        other = changed(misfit.asked, model={"num_layers": layers})
        yield f"model.num_layers={layers}", "fewer layers, for a trial", other


def _usable(run: Run) -> int:
    assert run.hardware.gpu is not None
    return usable_bytes(run.hardware.gpu)
