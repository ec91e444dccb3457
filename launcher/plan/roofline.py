"""How long operators take on one device: the slower of arithmetic and memory, plus the launch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.config.schema import Gpu, Model, Precision
from launcher.plan.work import (
    Operator,
    Shape,
    attention_operators,
    block_operators,
    embedding_operators,
    head_operators,
)


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Seconds of computing one microbatch on one rank, communication aside."""

    block_forward_s: float
    block_backward_s: float
    """Recomputation included."""
    embedding_forward_s: float
    embedding_backward_s: float
    head_forward_s: float
    head_backward_s: float
    block_weight_s: float = 0.0
    """Of the weights' gradients, a part of block_backward_s."""
    head_weight_s: float = 0.0


def estimate_parts(
    model: Model, shape: Shape, recompute: str, gpu: Gpu, precision: Precision
) -> PartTimes:
    """Times of the three kinds of parts that a stage is made of."""
    peak = getattr(gpu.peak_flops, precision.compute) * gpu.max_efficiency
    block = block_operators(model, shape)
    embedding, head = embedding_operators(model, shape), head_operators(model, shape)
    again = {"none": (), "selective": attention_operators(model, shape), "full": block}[recompute]
    return PartTimes(
        block_forward_s=_forward_s(block, peak, gpu),
        block_backward_s=_backward_s(block, peak, gpu) + _forward_s(again, peak, gpu),
        embedding_forward_s=_forward_s(embedding, peak, gpu),
        embedding_backward_s=_backward_s(embedding, peak, gpu),
        head_forward_s=_forward_s(head, peak, gpu),
        head_backward_s=_backward_s(head, peak, gpu),
        block_weight_s=_weight_s(block, peak, gpu),
        head_weight_s=_weight_s(head, peak, gpu),
    )


def _forward_s(operators: Iterable[Operator], peak: float, gpu: Gpu) -> float:
    return sum(
        gpu.op_overhead_s + max(op.flops / peak, op.bytes_moved / gpu.memory_bandwidth)
        for op in operators
    )


def _backward_s(operators: Iterable[Operator], peak: float, gpu: Gpu) -> float:
    """Twice the traffic: gradients are read and written beside the values."""
    return sum(
        gpu.op_overhead_s * op.backward_kernels
        + max(
            op.backward_flops * op.flops / peak,
            2 * op.bytes_moved / gpu.memory_bandwidth,
        )
        for op in operators
    )


def _weight_s(operators: Iterable[Operator], peak: float, gpu: Gpu) -> float:
    """Of matrix products with a weight, half of the backward pass: it has two products alike."""
    products = [op for op in operators if op.backward_kernels == 2]
    return _backward_s(products, peak, gpu) / 2
