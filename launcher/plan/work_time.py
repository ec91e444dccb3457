"""How long the kernels of a block take: forward, input gradient, weight gradient, and again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from launcher.config.schema import Gpu
from launcher.plan.execution import Execution, Job
from launcher.plan.kernels import Gemm, attention_s, elementwise_s, gemm_s, traffic_s
from launcher.plan.operator_records import Attention, Matmul, Traffic, Work
from launcher.plan.stragglers import slowest


class WorkTimes(NamedTuple):
    """Seconds of one microbatch on one rank."""

    forward_s: float = 0.0
    input_gradient_s: float = 0.0
    weight_gradient_s: float = 0.0
    core_s: float = 0.0
    """Of forward, the attention core."""
    core_gradient_s: float = 0.0
    """The same of the input gradient."""
    unsaved_s: float = 0.0
    """Of forward, what recomputation by operator does again."""

    def again_s(self, recompute: str) -> float:
        """What is computed again in backward."""
        if recompute == "selective":
            return self.core_s
        if recompute == "operators":
            return self.unsaved_s
        return self.forward_s if recompute == "full" else 0.0


def time_work(job: Job, work: Work) -> WorkTimes:
    """All kernels in a row: a training step keeps one stream busy."""
    gpu = job.hardware.gpu
    assert gpu is not None
    execution = job.execution
    matmuls = (*work.matmuls, *work.grouped)
    products = [
        _product_times(
            one.forward,
            _kind(one, execution),
            execution.gradient_bytes,
            execution.fuses_gradients,
            gpu,
        )
        for one in matmuls
    ]
    traffic_forward_s = sum([_moved_s(entry, gpu, "forward") for entry in work.traffic])
    core_s = sum([_attention_s(core, execution, gpu, "forward") for core in work.attention])
    unsaved_s = sum(
        [times.forward_s for times, one in zip(products, matmuls, strict=True) if not one.saved]
    )
    input_gradient_s = sum([times.input_gradient_s for times in products])
    input_gradient_s += sum([_moved_s(entry, gpu, "backward") for entry in work.traffic])
    core_gradient_s = sum([
        _attention_s(core, execution, gpu, "backward") for core in work.attention
    ])  # fmt: skip
    input_gradient_s += core_gradient_s
    longer = slowest(job.hardware)
    return WorkTimes(
        forward_s=longer * (sum([one.forward_s for one in products]) + traffic_forward_s + core_s),
        input_gradient_s=longer * input_gradient_s,
        weight_gradient_s=longer * sum([times.weight_gradient_s for times in products]),
        core_s=longer * core_s,
        core_gradient_s=longer * core_gradient_s,
        unsaved_s=longer * (traffic_forward_s + unsaved_s),
    )


def _kind(product: Matmul, execution: Execution) -> str:
    if product.is_quantised:
        return execution.matmul
    return "fp32" if execution.matmul == "fp32" else "bf16"


class _ProductTimes(NamedTuple):
    """Seconds of a product forward and backward."""

    forward_s: float
    input_gradient_s: float
    weight_gradient_s: float


@lru_cache(maxsize=65536)
def _product_times(
    gemm: Gemm, kind: str, gradient_bytes: int, fuses_gradients: bool, gpu: Gpu
) -> _ProductTimes:
    """The sum over microbatches is read and written in the type of accumulated gradients: by the
    product itself, or by a kernel behind it that reads what the product wrote.
    """
    m, n, k, batch, element, output = gemm
    of_input = Gemm(m, k, n, batch, element, output)
    of_weight = Gemm(k, n, m, batch, element, 2 * gradient_bytes if fuses_gradients else output)
    added_s = 0.0
    if not fuses_gradients:
        moved = float(batch) * n * k * (output + 2 * gradient_bytes)
        added_s = elementwise_s(moved, 1, gpu)
    return _ProductTimes(
        forward_s=gemm_s(gemm, kind, gpu) + _casts_s(gemm, kind, gpu, (m * k,)),
        input_gradient_s=gemm_s(of_input, kind, gpu) + _casts_s(gemm, kind, gpu, (m * n,)),
        weight_gradient_s=gemm_s(of_weight, kind, gpu) + added_s,
    )


def _casts_s(gemm: Gemm, kind: str, gpu: Gpu, sizes: Iterable[int]) -> float:
    """Making 8-bit operands: read, find the largest, write once as it is and once transposed."""
    if kind != "fp8":
        return 0.0
    return traffic_s(6.0 * gemm.batch * sum(sizes), gpu) + 2 * gpu.op_overhead_s


def _moved_s(entry: Traffic, gpu: Gpu, direction: str) -> float:
    if direction == "forward":
        return elementwise_s(entry.forward_bytes, entry.forward_kernels, gpu)
    return elementwise_s(entry.backward_bytes, entry.backward_kernels, gpu)


def _attention_s(core: Attention, execution: Execution, gpu: Gpu, direction: str) -> float:
    if execution.attention == "matrix":
        return _matrix_attention_s(core, execution, gpu, direction)
    pairs = core.batch * core.heads * core.queries * core.seen
    forward = 2 * pairs * (core.score_dim + core.value_dim)
    # Backward: scores again, dQ, dK over score_dim; dV, dP over value_dim (arXiv:2307.08691).
    flops = (
        forward if direction == "forward" else 2 * pairs * (3 * core.score_dim + 2 * core.value_dim)
    )
    kind = "fp32" if execution.matmul == "fp32" else "bf16"
    widest = max(core.score_dim, core.value_dim)
    return attention_s(flops, core.seen, widest, execution.attention, kind, direction, gpu)


MATRIX_BYTES = {"forward": 4, "backward": 6}
"""Per score in two-byte numbers: softmax reads and writes; backward reads two and writes one."""

DROPOUT_BYTES = {"forward": 5, "backward": 5}
"""Per score: read, write and a mask."""


def _matrix_attention_s(core: Attention, execution: Execution, gpu: Gpu, direction: str) -> float:
    """Two batched products over all keys, half of them masked, and the softmax between."""
    batch = core.batch * core.heads
    scores = Gemm(m=core.queries, n=core.keys, k=core.score_dim, batch=batch)
    values = Gemm(m=core.queries, n=core.value_dim, k=core.keys, batch=batch)
    kind = "fp32" if execution.matmul == "fp32" else "bf16"
    products = gemm_s(scores, kind, gpu) + gemm_s(values, kind, gpu)
    per_score = MATRIX_BYTES[direction] + (DROPOUT_BYTES[direction] if core.dropout else 0)
    kernels = 2 if core.dropout else 1
    num_scores = batch * core.queries * core.keys
    moved = elementwise_s(per_score * num_scores, kernels, gpu)
    return products * (2 if direction == "backward" else 1) + moved
