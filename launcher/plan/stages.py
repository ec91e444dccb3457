"""Which blocks each pipeline stage gets: contiguous, and as even as the ends allow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from launcher.config.schema import Model
from launcher.plan.costs import (
    block_parameters,
    embedding_parameters,
    head_parameters,
    sum_sizes,
    tied_copy,
)
from launcher.plan.records import Stage
from launcher.plan.roofline import PartTimes
from launcher.plan.schedule_records import Chain


def split_stages(
    model: Model, pp: int, parts: PartTimes, chain: Chain | None = None
) -> tuple[Stage, ...]:
    """The stages of a model, split by the time of blocks, embedding and head.

    `chain` says which parts of the model a stage has; without it, stage s has part s.
    """
    chain = chain or Chain(num_stages=pp)
    bounds = split_layers(
        model.num_layers,
        chain.num_parts,
        block_cost=parts.block_forward_s + parts.block_backward_s,
        first_cost=parts.embedding_forward_s + parts.embedding_backward_s,
        last_cost=parts.head_forward_s + parts.head_backward_s,
    )
    return tuple(_build_stage(model, chain, stage, bounds) for stage in range(pp))


def _build_stage(
    model: Model, chain: Chain, stage: int, bounds: Sequence[tuple[int, int]]
) -> Stage:
    parts = [chain.part(stage, chunk) for chunk in range(chain.num_chunks)]
    chunks = tuple(bounds[part] for part in parts)
    is_first, is_last = parts[0] == 0, parts[-1] == chain.num_parts - 1
    num_layers = sum(end - start for start, end in chunks)
    return Stage(
        stage=stage,
        first_layer=min(start for start, _ in chunks),
        end_layer=max(end for _, end in chunks),
        parameters=count_stage_parameters(model, num_layers, is_first, is_last),
        is_first=is_first,
        is_last=is_last,
        chunks=chunks if len(chunks) > 1 else (),
    )


def count_stage_parameters(
    model: Model, num_layers: int, is_first: bool, is_last: bool, tp: int = 1
) -> int:
    """Parameters of a stage, its tied copy included; with tp > 1, those of one of its ranks."""
    total = num_layers * sum_sizes(block_parameters(model, 0), tp)
    if is_first:
        total += sum_sizes(embedding_parameters(model), tp)
    if is_last:
        total += sum_sizes(head_parameters(model), tp)
    if is_last and not is_first:
        total += sum_sizes(tied_copy(model), tp)
    return total


def split_layers(
    num_layers: int,
    num_stages: int,
    *,
    block_cost: float = 1.0,
    first_cost: float = 0.0,
    last_cost: float = 0.0,
) -> list[tuple[int, int]]:
    """Contiguous split of equal blocks with the smallest maximum; the ends cost extra.

    Every stage gets a block where there are enough. Layer by layer, the stage that stays cheapest
    takes one more: that is optimal for equal blocks. Ties go to the later stage, which keeps fewer
    microbatches under 1F1B.

    split_layers(7, 3) -> [(0, 2), (2, 4), (4, 7)]
    """
    least = 1 if num_layers >= num_stages else 0
    counts = [least] * num_stages
    costs = [least * block_cost] * num_stages
    costs[0] += first_cost
    costs[-1] += last_cost
    for _ in range(num_layers - least * num_stages):
        stage = min(range(num_stages), key=lambda index: (costs[index], -index))
        counts[stage] += 1
        costs[stage] += block_cost
    bounds = list(itertools.accumulate(counts, initial=0))
    return list(itertools.pairwise(bounds))
