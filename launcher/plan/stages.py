"""Which blocks each pipeline stage gets: contiguous, and as even as the ends allow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heapreplace
from typing import NamedTuple, Protocol

from launcher.config.schema import Model
from launcher.plan.costs import (
    block_parameters,
    embedding_parameters,
    encoder_parameters,
    head_parameters,
    sum_sizes,
    tied_copy,
)
from launcher.plan.records import Stage
from launcher.plan.schedule_records import Chain


class PartCosts(Protocol):
    """What a block and the model's two ends cost, in one unit."""

    @property
    def block_s(self) -> float:
        """One block, forward and backward."""

    @property
    def embedding_s(self) -> float:
        """What the first stage does besides."""

    @property
    def head_s(self) -> float:
        """What the last stage does besides."""


def split_stages(
    model: Model,
    pp: int,
    costs: PartCosts,
    chain: Chain | None = None,
    speeds: Sequence[float] | None = None,
) -> tuple[Stage, ...]:
    """The stages of a model, split by the time of blocks, embedding and head.

    `chain` says which parts of the model a stage has; without it, stage s has part s. `speeds`:
    relative, of the stages; None: all are equal.
    """
    chain = chain or Chain(num_stages=pp)
    bounds = split_layers(
        model.num_layers,
        chain.num_parts,
        block_cost=costs.block_s,
        first_cost=costs.embedding_s,
        last_cost=costs.head_s,
        speeds=[speeds[chain.home(part)[0]] for part in range(chain.num_parts)] if speeds else None,
    )
    return make_stages(model, chain, bounds)


def make_stages(model: Model, chain: Chain, bounds: Sequence[tuple[int, int]]) -> tuple[Stage, ...]:
    """Stages whose parts are these blocks: (first, end) each."""
    return tuple(_make_stage(model, chain, stage, bounds) for stage in range(chain.num_stages))


def _make_stage(model: Model, chain: Chain, stage: int, bounds: Sequence[tuple[int, int]]) -> Stage:
    parts = [chain.part(stage, chunk) for chunk in range(chain.num_chunks)]
    chunks = tuple(bounds[part] for part in parts)
    is_first, is_last = parts[0] == 0, parts[-1] == chain.num_parts - 1
    num_layers = sum(end - start for start, end in chunks)
    return Stage(
        stage=stage,
        first_layer=min(start for start, _ in chunks),
        end_layer=max(end for _, end in chunks),
        parameters=count_stage_parameters(
            model, num_layers, is_first, is_last,
            num_dense=sum([count_dense_layers(model, first, end) for first, end in chunks]),
        ),
        is_first=is_first,
        is_last=is_last,
        chunks=chunks if len(chunks) > 1 else (),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def count_stage_parameters(
    model: Model, num_layers: int, is_first: bool, is_last: bool, tp: int = 1, ep: int = 1,
    num_dense: int = 0,
) -> int:  # fmt: skip
    """Parameters of a stage, its tied copy included; with tp or ep > 1, those of one rank.

    `num_dense` of its blocks keep a plain MLP in a model with experts.
    """
    total = num_layers * _block_size(model, model.usual_block, tp)
    total += count_expert_parameters(model, num_layers, num_dense, tp, ep)
    if model.experts:
        usual = _block_size(model, model.usual_block, tp)
        total += num_dense * (_block_size(model, 0, tp) - usual)
    if is_first:
        total += _end_size(model, "embedding", tp) + count_encoder(model, tp)
    if is_last:
        total += _end_size(model, "head", tp)
    if is_last and not is_first:
        total += _end_size(model, "tied", tp)
    return total


@lru_cache(maxsize=1024)
def _end_size(model: Model, end: str, tp: int) -> int:
    tables = {"embedding": embedding_parameters, "head": head_parameters, "tied": tied_copy}
    return sum_sizes(tables[end](model), tp)


def largest_block(model: Model, tp: int, ep: int) -> int:
    """Elements of a block on one rank: of one with experts, or of one without that is larger."""
    size = count_stage_parameters(model, 1, False, False, tp, ep)
    return max(size, _block_size(model, 0, tp)) if model.num_plain else size


def count_expert_parameters(
    model: Model, num_layers: int, num_dense: int, tp: int = 1, ep: int = 1
) -> int:
    """Those of routed experts, which ep ranks share out and which tp cuts only without ep."""
    if model.experts is None:
        return 0
    return (num_layers - num_dense) * _experts_size(model, tp if ep == 1 else 1) // ep


def count_dense_layers(model: Model, first_layer: int, end_layer: int) -> int:
    """Blocks of this range that keep a plain MLP in a model with experts; else 0."""
    return model.experts.count_plain(first_layer, end_layer) if model.experts else 0


def dense_layers_of(model: Model, stage: Stage) -> int:
    """Those of a stage, chunk by chunk: with few blocks each, more than the first part has some."""
    chunks = stage.chunks
    if not chunks:
        return count_dense_layers(model, stage.first_layer, stage.end_layer)
    return sum([count_dense_layers(model, first, end) for first, end in chunks])


@lru_cache(maxsize=1024)
def count_encoder(model: Model, tp: int) -> int:
    """The encoder of an encoder-decoder, which the first stage has; else 0."""
    return sum_sizes(encoder_parameters(model), tp)


@lru_cache(maxsize=1024)
def _block_size(model: Model, layer: int, tp: int) -> int:
    """One block without routed experts."""
    specs = block_parameters(model, layer)
    return sum_sizes(tuple(spec for spec in specs if not spec.is_expert), tp)


@lru_cache(maxsize=1024)
def _experts_size(model: Model, tp: int) -> int:
    specs = block_parameters(model, model.usual_block)
    return sum_sizes(tuple(spec for spec in specs if spec.is_expert), tp)


def split_layers(
    num_layers: int,
    num_stages: int,
    *,
    block_cost: float = 1.0,
    first_cost: float = 0.0,
    last_cost: float = 0.0,
    speeds: Sequence[float] | None = None,
) -> list[tuple[int, int]]:
    """Contiguous split of equal blocks with the smallest maximum; the ends cost extra.

    Every stage gets a block where there are enough. Layer by layer, the stage that stays cheapest
    takes one more: that is optimal for equal blocks, on stages of unequal speeds, too. Ties go to
    the later stage, which keeps fewer microbatches under 1F1B.

    split_layers(7, 3) -> [(0, 2), (2, 4), (4, 7)]
    """
    if num_stages == 1:
        return [(0, num_layers)]
    least = 1 if num_layers >= num_stages else 0
    unequal = speeds is not None and len(set(speeds)) > 1
    if unequal:
        counts = _by_speed(num_layers, least, block_cost, first_cost, last_cost, speeds or ())
    else:
        ends = split_evenly(num_layers, num_stages, block_cost, first_cost, last_cost)
        counts = ends.counts(num_stages)
    bounds = list(itertools.accumulate(counts, initial=0))
    return list(itertools.pairwise(bounds))


class Shares(NamedTuple):
    """Blocks of equally fast stages."""

    first: int
    last: int
    rest: int
    late: int
    """So many of those between, the last of them, have one more than `rest`."""

    def counts(self, num_stages: int) -> list[int]:
        """Stage by stage."""
        early = [self.rest] * (num_stages - 2 - self.late)
        return [self.first, *early, *[self.rest + 1] * self.late, self.last]


def split_evenly(
    num_layers: int, num_stages: int, block_cost: float, first_cost: float, last_cost: float
) -> Shares:
    """`split_layers` over more than one stage, all equally fast."""
    least = 1 if num_layers >= num_stages else 0
    own = least * block_cost
    first_cost, last_cost, rest_cost = own + first_cost, own + last_cost, own
    first = last = rest = least
    late = 0
    middle, waiting = num_stages - 2, num_layers - least * num_stages
    while waiting:
        # Middle stages are alike: in one round each of them takes one, the last of them first.
        if last_cost <= first_cost and (not middle or last_cost <= rest_cost):
            last, last_cost = last + 1, last_cost + block_cost
            waiting -= 1
        elif middle and rest_cost <= first_cost:
            late = min(middle, waiting)
            waiting -= late
            if late == middle:
                rest, rest_cost, late = rest + 1, rest_cost + block_cost, 0
        else:
            first, first_cost = first + 1, first_cost + block_cost
            waiting -= 1
    return Shares(first, last, rest, late)


def _by_speed(
    num_layers: int, least: int, block_cost: float, first_cost: float, last_cost: float,
    speeds: Sequence[float],
) -> list[int]:  # fmt: skip
    """Blocks of stages that are not equally fast."""
    counts = [least] * len(speeds)
    costs = [least * block_cost] * len(speeds)
    costs[0] += first_cost
    costs[-1] += last_cost
    # By the time that each would take with one block more.
    cheapest = [((cost + block_cost) / speeds[stage], -stage) for stage, cost in enumerate(costs)]
    heapify(cheapest)
    for _ in range(num_layers - least * len(speeds)):
        cost, stage = cheapest[0]
        counts[-stage] += 1
        heapreplace(cheapest, (cost + block_cost / speeds[-stage], stage))
    return counts
