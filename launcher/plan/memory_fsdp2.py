"""What fully_shard holds for a moment beside a rank's own share: groups gathered and reduced.

A group is a block, the embedding, the head with the last norm, or, where one stage has both ends
of a tied table, both together (`runtime/engine_fsdp2.py`).
"""

from __future__ import annotations

from launcher.config.schema import Model
from launcher.plan.costs import (
    embedding_parameters,
    head_parameters,
    sum_sizes,
    tied_copy,
)
from launcher.plan.records import Layout, Stage
from launcher.plan.stages import largest_block

_SUM_BYTES = 4
"""Gradients are copied into a float32 buffer that is reduced."""


def outer_groups(model: Model, stage: Stage, tp: int) -> tuple[int, ...]:
    """Elements, on one tp rank, of the groups that are no block."""
    groups = []
    if stage.is_first:
        groups.append(sum_sizes(embedding_parameters(model), tp))
    if stage.is_last:
        head = sum_sizes(head_parameters(model), tp)
        groups.append(head if stage.is_first else head + sum_sizes(tied_copy(model), tp))
    if model.tie_embeddings and stage.is_first and stage.is_last:
        return (sum(groups),)
    return tuple(groups)


def gathered_per_microbatch(model: Model, stage: Stage, tp: int, size: int) -> int:
    """Elements that zero_stage=3 gathers of a stage's `size`: blocks twice, the others once.

    A lookup's backward reads no weight, and the head's begins where its forward ends.
    """
    return 2 * size - sum(outer_groups(model, stage, tp))


def group_buffers_bytes(
    model: Model,
    layout: Layout,
    stage: Stage,
    element_bytes: int,
    block_bytes: int,
    head_bytes: int,
    shards: int,
) -> int:
    """Peak over backward: its temporaries with the groups gathered and reduced at that moment.

    `block_bytes` and `head_bytes` are the temporaries of a block and of the head; `shards`
    ranks share a sum.
    """
    block = largest_block(model, layout.tp, layout.ep)
    outer = outer_groups(model, stage, layout.tp)
    # Gathered: the group at hand and the next one. At lower stages both are among the parameters.
    gathered = element_bytes if layout.zero_stage == 3 else 0
    is_one = model.tie_embeddings and stage.is_first and stage.is_last
    # A tied table stays gathered, and its gradient waits for the embedding's, from end to end.
    kept = (gathered + element_bytes) * sum(outer) if is_one else 0

    def reduced(elements: int) -> int:
        """A group's gradient, its float32 copy and this rank's part of the sum."""
        return elements * (element_bytes + _SUM_BYTES) + _SUM_BYTES * -(-elements // shards)

    phases = [block_bytes + 2 * gathered * block + reduced(block) + kept]
    if stage.is_last:
        phases.append(head_bytes + gathered * (outer[-1] + block) + reduced(outer[-1]))
    if stage.is_first:
        phases.append(gathered * outer[0] + reduced(outer[0]))
    return max(phases)
