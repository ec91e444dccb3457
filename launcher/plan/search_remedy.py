"""What a search says where nothing fits: what the leanest layout lacks, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.frozen import frozen
from launcher.plan.search import rank_layouts
from launcher.plan.search_choice import CHOICE_KEYS, changed, dotted
from launcher.plan.search_leanest import leanest_of
from launcher.plan.search_predict import Predicted, predict
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
    after: Predicted


def find_leanest(run: Run, fixed: frozenset[str], has_planned: bool) -> Predicted | None:
    """The layout that takes least memory of all; None where none is legal."""
    choice = leanest_of(build_space(run, fixed, has_planned))
    return None if choice is None else predict(run, choice)


def find_nearest(run: Run, fixed: frozenset[str], has_planned: bool) -> tuple[Remedy, ...]:
    """At most three changes that fit, each tried: what is given up first, then what costs more."""
    return tuple(islice(_remedies(run, fixed, has_planned), NUM_NEAREST))


def _remedies(run: Run, fixed: frozenset[str], has_planned: bool) -> Iterator[Remedy]:
    for key in CHOICE_KEYS:
        if key in fixed:
            found = _best(run, fixed - {key}, has_planned)
            if found is not None:
                override = f"{dotted(key)}={getattr(found.choice, key)}"
                yield Remedy(
                    override=override, reason=f"{dotted(key)} no longer fixed", after=found
                )
    for attempts in (_more_nodes(run), _shorter(run), _larger(run), _shallower(run)):
        for override, reason, other in attempts:
            found = _best(other, fixed, has_planned)
            if found is not None:
                yield Remedy(override=override, reason=reason, after=found)
                break


def _best(run: Run, fixed: frozenset[str], has_planned: bool) -> Predicted | None:
    if check_run(run):
        return None
    best = rank_layouts(build_space(run, fixed, has_planned), 1).best
    return predict(run, best[0].choice) if best else None


_Attempts = Iterator[tuple[str, str, Run]]


def _more_nodes(run: Run) -> _Attempts:
    if run.hardware.network is None and run.hardware.num_nodes == 1:
        return
    for doubling in range(1, MOST_DOUBLINGS + 1):
        nodes = run.hardware.num_nodes * 2**doubling
        other = changed(run, hardware={"num_nodes": nodes})
        yield f"hardware.num_nodes={nodes}", "more nodes", other


def _shorter(run: Run) -> _Attempts:
    length = run.train.sequence_length or 1
    while length > SHORTEST:
        length //= 2
        other = changed(run, train={"sequence_length": length})
        yield f"train.sequence_length={length}", "shorter samples", other


def _larger(run: Run) -> _Attempts:
    gpu = run.hardware.gpu
    assert gpu is not None
    for times in (2, 4, 8, 16, 32):
        larger = gpu.model_copy(update={"memory_bytes": gpu.memory_bytes * times})
        override = f"hardware.gpu.memory_bytes={larger.memory_bytes}"
        reason = f"devices of {larger.memory_bytes / 2**30:,.0f} GiB"
        yield override, reason, changed(run, hardware={"gpu": larger})


def _shallower(run: Run) -> _Attempts:
    layers = run.model.num_layers
    while layers > 1:
        layers //= 2
        other = changed(run, model={"num_layers": layers})
        yield f"model.num_layers={layers}", "fewer layers, for a trial", other
