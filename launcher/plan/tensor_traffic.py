"""What the runtime's tensor parallelism sends, and what of it shows beside matrix products.

Counted as `runtime/parallel/products.py` works: an input is made *whole* before a group of products
and partial results are *summed* behind one; backward it is the other way round. Without sequence
parallelism whole costs nothing and a sum is an all-reduce; with it they are an all-gather and a
reduce-scatter, and an input that was gathered is gathered again for the weights' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from launcher.config.schedule_facts import SCHEDULE_FACTS
from launcher.config.schema import Gpu, Model
from launcher.frozen import frozen
from launcher.plan.collectives import Links, PassTimes, exposed_s
from launcher.plan.costs import block_parameters, embedding_parameters, head_parameters
from launcher.plan.execution import Job, hides_transfers
from launcher.plan.kernels import Gemm, gemm_s
from launcher.plan.links import transfer_s
from launcher.plan.operator_records import Size, size_of
from launcher.plan.records import Stage
from launcher.plan.stages import dense_layers_of


@frozen
class Collectives:
    """How often a rank talks over tp per microbatch, forward and backward together."""

    wholes: int
    sums: int


def count_collectives(stage: Stage, recompute: str, share: float = 1.0) -> Collectives:
    """Two of each per block and pass (Megatron-LM, arXiv:1909.08053, fig. 4; 2205.05198, fig. 5).

    Backward gathers the products' inputs again. A block that is recomputed gathers twice and sums
    once more (its last sum is not needed again); the embedding sums, the head makes whole.
    `share` of the blocks recompute.
    """
    blocks = stage.num_layers
    again = round(share * blocks) if recompute == "full" else 0
    ends = stage.is_first + stage.is_last
    return Collectives(
        wholes=6 * blocks + 2 * again + ends + stage.is_last, sums=4 * blocks + again + ends
    )


def runtime_tp_times(job: Job, links: Links, blocks: int, ends: int, again: float) -> PassTimes:
    """Seconds per microbatch in which a rank only waits for tp."""
    if job.layout.tp == 1:
        return PassTimes()
    payload = size_of(job).tokens * job.model.hidden_size * job.execution.element_bytes
    if job.execution.sequence_parallel:
        whole_s = transfer_s("all_gather", payload, links.tp)
        sum_s = transfer_s("reduce_scatter", payload, links.tp)
    else:
        whole_s, sum_s = 0.0, transfer_s("all_reduce", payload, links.tp)
    rows, columns = _shown(job, whole_s, sum_s) if blocks else ([0.0, 0.0], [0.0, 0.0])
    repeated = 2 * whole_s + rows[0]
    return PassTimes(
        forward_s=blocks * (2 * whole_s + sum(rows)) + ends * (whole_s + sum_s),
        backward_s=blocks * (2 * whole_s + sum(columns) + again * repeated)
        + ends * (2 * whole_s + sum_s),
    )


def _shown(job: Job, whole_s: float, sum_s: float) -> tuple[list[float], list[float]]:
    """What shows of the sum behind each row-parallel product of a block, and of the two collectives
    in the backward pass of each column-parallel group: of attention, of the MLP.
    """
    chunks = job.execution.row_chunks
    if not job.execution.overlap_tp or not chunks or not hides_transfers(job.hardware):
        return [sum_s] * 2, [whole_s + sum_s] * 2
    execution, gpu = job.execution, job.hardware.gpu
    assert gpu is not None
    rows, columns = _products_s(
        job.model, size_of(job), execution.element_bytes, execution.matmul, gpu
    )
    # Chunk by chunk: the sum of the last chunk has nothing beside it.
    share = 1 - 1 / chunks
    of_rows = [exposed_s(share * sum_s, share * product_s) + sum_s / chunks for product_s in rows]
    if _splits_backward(job):  # the weights' products come later, their gather with them
        return of_rows, [whole_s + sum_s] * 2
    # The gather runs beside the input's gradient, the sum beside the weights'.
    return of_rows, [exposed_s(whole_s, p) + exposed_s(sum_s, p) for p in columns]


@lru_cache(maxsize=4096)
def _products_s(
    model: Model, size: Size, element: int, kind: str, gpu: Gpu
) -> tuple[list[float], list[float]]:
    """Row-parallel products of a block and its column-parallel groups: of attention, of the MLP."""

    def product_s(inputs: int, outputs: int) -> float:
        gemm = Gemm(m=size.tokens, n=outputs, k=inputs, element_bytes=element, output_bytes=element)
        return gemm_s(gemm, kind, gpu)

    hidden = model.hidden_size
    widths = (size.queries + 2 * size.keys, (2 if model.is_gated else 1) * size.ffn)
    return (
        [product_s(inputs, hidden) for inputs in (size.queries, size.ffn)],
        [product_s(hidden, width) for width in widths],
    )


def _splits_backward(job: Job) -> bool:
    facts = SCHEDULE_FACTS.get(job.layout.schedule)
    return facts.splits_backward if facts else job.execution.file_splits_backward


def partial_gradients(job: Job, stages: Sequence[Stage]) -> tuple[int, int]:
    """Number and elements of parameters whose gradients sequence parallelism leaves partial.

    All that a tp rank holds whole: norms, biases of row-parallel layers, learned positions; of the
    stage that has most of them.
    """
    kinds = {
        (stage.num_layers - plain, plain, stage.is_first, stage.is_last)
        for stage in stages
        for plain in [dense_layers_of(job.model, stage)]
    }
    return max([_count_partial(job.model, kind) for kind in kinds])[::-1]


@lru_cache(maxsize=1024)
def _count_partial(model: Model, kind: tuple[int, int, bool, bool]) -> tuple[int, int]:
    """Elements and number, of a stage of so many blocks of each kind and these ends."""
    elements, numbers = zip(*_count_whole(model), strict=True)
    return (
        sum(each * count for each, count in zip(kind, elements, strict=True)),
        sum(each * count for each, count in zip(kind, numbers, strict=True)),
    )


@lru_cache(maxsize=64)
def _count_whole(model: Model) -> tuple[tuple[int, int], ...]:
    """Elements and number of what tp does not cut: of a block, of one without experts where others
    have some, of the embedding and the head.
    """
    usual, plain = (block_parameters(model, layer) for layer in (model.usual_block, 0))
    tables = (usual, plain, embedding_parameters(model), head_parameters(model))
    kept = [
        [spec.size for spec in specs if spec.tp_dim is None and not spec.is_expert]
        for specs in tables
    ]
    return tuple((sum(sizes), len(sizes)) for sizes in kept)
