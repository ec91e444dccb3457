"""What tensor parallelism sends, and how much of it stays visible beside matrix products.

Counted as `runtime/parallel/products.py` works: an input is made *whole* before a group of products
and partial results are *summed* behind one; backward it is the other way round. Without sequence
parallelism whole costs nothing and a sum is an all-reduce; with it they are an all-gather and a
reduce-scatter, and an input that was gathered is gathered again for the weights' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.config.schema import Gpu, Model, Run
from launcher.plan.costs import (
    ParameterSpec,
    block_parameters,
    embedding_parameters,
    head_parameters,
)
from launcher.plan.links import Link, transfer_s
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule_records import StageTimes
from launcher.plan.work import ROW_CHUNKS, Shape, hidden_bytes


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """How often a rank of a stage talks over tp in one pass of one microbatch."""

    wholes: int
    sums: int


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Of the three kinds of passes."""

    forward: Collectives
    backward: Collectives
    weight: Collectives
    """Nothing, unless the schedule splits the backward pass."""

    @property
    def wholes(self) -> int:
        """Of all passes of a microbatch."""
        return self.forward.wholes + self.backward.wholes + self.weight.wholes

    @property
    def sums(self) -> int:
        """Of all passes of a microbatch."""
        return self.forward.sums + self.backward.sums + self.weight.sums


def count_collectives(stage: Stage, recompute: str, splits: bool) -> Passes:
    """Two of each per block and pass (Megatron-LM, arXiv:1909.08053, fig. 4; 2205.05198, fig. 5).

    A block that is recomputed gathers twice and sums once more (its last sum is not needed again);
    the embedding sums, the head makes its input whole.
    """
    blocks = stage.num_layers
    again = blocks if recompute == "full" else 0
    for_weights = 2 * blocks + stage.is_last
    return Passes(
        forward=Collectives(wholes=2 * blocks + stage.is_last, sums=2 * blocks + stage.is_first),
        backward=Collectives(
            wholes=2 * blocks + stage.is_first + 2 * again + (0 if splits else for_weights),
            sums=2 * blocks + stage.is_last + again,
        ),
        weight=Collectives(wholes=for_weights if splits else 0, sums=0),
    )


def exposed_times(run: Run, layout: Layout, shape: Shape, stage: Stage, splits: bool, link: Link,
) -> StageTimes:  # fmt: skip
    """Seconds per microbatch in which a stage only waits for tp."""
    assert run.hardware.gpu is not None
    whole_s, sum_s = collective_times(run.model, shape, link)
    passes = count_collectives(stage, layout.recompute, splits)
    hidden = _Hidden() if not layout.overlap_tp else _hide(run, shape, whole_s, sum_s)
    blocks = stage.num_layers
    again = blocks if layout.recompute == "full" else 0
    forward_s = passes.forward.wholes * whole_s + passes.forward.sums * sum_s
    forward_s -= blocks * hidden.rows_s
    backward_s = passes.backward.wholes * whole_s + passes.backward.sums * sum_s
    backward_s -= again * hidden.attention_row_s
    if not splits:
        backward_s -= blocks * hidden.columns_s + stage.is_last * hidden.head_s
    return StageTimes(
        forward_s=forward_s, backward_s=backward_s, weight_s=passes.weight.wholes * whole_s
    )


def collective_times(model: Model, shape: Shape, link: Link) -> tuple[float, float]:
    """Seconds to make an activation whole and to sum it up."""
    payload = hidden_bytes(model, shape)
    if not shape.sequence_parallel:
        return 0.0, transfer_s("all_reduce", payload, link)
    gather_s = transfer_s("all_gather", payload, link)
    return gather_s, transfer_s("reduce_scatter", payload, link)


def partial_gradients(model: Model, stages: Sequence[Stage]) -> tuple[int, int]:
    """Number and elements of parameters whose gradients sequence parallelism leaves partial.

    All that a tp rank holds whole: norms, biases of row-parallel layers, learned positions; of the
    stage that has most of them.
    """

    def of(stage: Stage) -> list[ParameterSpec]:
        specs = list(block_parameters(model, 0)) * stage.num_layers
        specs += embedding_parameters(model) if stage.is_first else ()
        specs += head_parameters(model) if stage.is_last else ()
        return [spec for spec in specs if spec.tp_dim is None]

    most = max((of(stage) for stage in stages), key=lambda specs: sum(spec.size for spec in specs))
    return len(most), sum(spec.size for spec in most)


@dataclass(frozen=True, kw_only=True)
class _Hidden:
    """Seconds of collectives that run behind products; per block, but for the head's."""

    rows_s: float = 0.0
    attention_row_s: float = 0.0
    columns_s: float = 0.0
    head_s: float = 0.0


def _hide(run: Run, shape: Shape, whole_s: float, sum_s: float) -> _Hidden:
    model = run.model
    hidden, heads = model.hidden_size, model.num_heads // shape.tp
    queries = heads * model.head_size
    keys = max(1, model.kv_heads // shape.tp) * model.head_size
    ffn = model.ffn_hidden_size // shape.tp
    rows = [_product_s(run, shape, inputs, hidden) for inputs in (queries, ffn)]
    groups = (queries + 2 * keys, (2 if model.is_gated else 1) * ffn)
    columns = [_product_s(run, shape, hidden, outputs) for outputs in groups]
    head = _product_s(run, shape, hidden, -(-model.vocab_size // shape.tp))
    # Chunk by chunk: the last chunk's sum, or what products are too short for, stays visible.
    behind = [min(sum_s, product_s) * (1 - 1 / ROW_CHUNKS) for product_s in rows]
    return _Hidden(
        rows_s=sum(behind),
        attention_row_s=behind[0],
        # The gather beside the input's gradient, the sum beside the weights'.
        columns_s=sum(min(whole_s, p) + min(sum_s, p) for p in columns),
        head_s=min(whole_s, head) + min(sum_s, head),
    )


def _product_s(run: Run, shape: Shape, inputs: int, outputs: int) -> float:
    gpu: Gpu | None = run.hardware.gpu
    assert gpu is not None
    peak = getattr(gpu.peak_flops, run.precision.compute) * gpu.max_efficiency
    return float(2.0 * shape.tokens * inputs * outputs / peak)
