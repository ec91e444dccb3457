"""The batch triangle: global = micro x num_microbatches x dp, solved from any two."""

from __future__ import annotations

from launcher.config.schema import Model, Train
from launcher.frozen import frozen

MAX_DEFAULT_SEQUENCE = 8192
"""Longer contexts are a choice to be made by the user: activations grow with them."""

MAX_DEFAULT_TOKENS = 2**24
"""Tokens per step that a default does not exceed by choice: the largest batch of Llama 3 405B
(arXiv:2407.21783, sec. 3.4.1)."""


@frozen
class Batch:
    """The solved triangle."""

    micro_batch_size: int
    num_microbatches: int
    global_batch_size: int


def default_sequence_length(model: Model) -> int:
    """What an open sequence length becomes."""
    return min(model.max_sequence_length, MAX_DEFAULT_SEQUENCE)


def solve_batch(train: Train, dp: int, pp: int, sequence_length: int) -> Batch:
    """Fill the open sides of the triangle; rule `batch-triangle` has seen that they agree.

    solve_batch(global 32, micro 4, dp 4) -> num_microbatches 2
    """
    micro, count, whole = train.micro_batch_size, train.num_microbatches, train.global_batch_size
    if whole is None:
        micro = micro or 1
        count = count or _default_microbatches(pp, micro * dp * sequence_length)
    elif micro is None:
        # Small microbatches first: they keep the pipeline full and the activations small.
        micro = whole // (count * dp) if count else 1
    if count is None:
        assert whole is not None
        count = whole // (micro * dp)
    product = micro * count * dp
    assert whole in (None, product), f"batch-triangle let {product} pass for {whole}"
    return Batch(micro_batch_size=micro, num_microbatches=count, global_batch_size=product)


def _default_microbatches(pp: int, tokens_per_microbatch: int) -> int:
    """Enough to keep a pipeline's bubble near a ninth; half of that where the batch gets huge."""
    if pp == 1:
        return 1
    return 8 * pp if 8 * pp * tokens_per_microbatch <= MAX_DEFAULT_TOKENS else 4 * pp
