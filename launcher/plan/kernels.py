"""How long one kernel takes on one device: matrix products by tile and wave, attention, traffic."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from launcher.config.hardware_schema import MeasuredKernel
from launcher.config.schema import Gpu
from launcher.plan.measured_kernels import correct

TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.93), (128, 64, 0.78), (64, 64, 0.6))
"""Output tiles of matrix kernels, rows x columns, and the share of the largest tile's rate that a
multiprocessor reaches with them. Smaller ones reuse less of what they load; assumed shares."""

TILE_START = 75
"""Depth of a product whose time equals filling and draining a tile's pipeline: with it weight
gradients of 1,024 and of 6,144 tokens stand to each other as in the zero-bubble paper's profile
of an A100 (76 and 81 % of the peak; arXiv:2401.10241, table 9)."""

SPLITS = (1, 2, 3, 4, 8)
"""Into how many parts a library splits the depth of a product that has few tiles."""


class Gemm(NamedTuple):
    """m x k times k x n, `batch` times."""

    m: int
    n: int
    k: int
    batch: int = 1
    element_bytes: int = 2
    output_bytes: int = 2

    @property
    def flops(self) -> float:
        """2 per multiply-add."""
        return 2.0 * self.m * self.n * self.k * self.batch

    @property
    def bytes_moved(self) -> float:
        """Operands read once, the result written once."""
        operands = self.element_bytes * self.k * (self.m + self.n)
        return float(self.batch) * (operands + self.output_bytes * self.m * self.n)


@lru_cache(maxsize=65536)
def gemm_s(gemm: Gemm, kind: str, gpu: Gpu) -> float:
    """Seconds of a product: modelled, and corrected by what was measured near its size."""
    if not (gemm.m and gemm.n and gemm.k and gemm.batch):
        return 0.0
    modelled_s = _gemm_model_s(gemm, kind, gpu)
    if not gpu.kernels:
        return modelled_s

    def model(one: MeasuredKernel) -> float:
        size = 4 if kind == "fp32" else 2
        other = Gemm(m=one.m, n=one.n, k=one.k, element_bytes=size, output_bytes=size)
        return _gemm_model_s(other, kind, gpu)

    return correct(modelled_s, "matmul", kind, (gemm.m, gemm.n, gemm.k), gpu.kernels, model)


def _gemm_model_s(gemm: Gemm, kind: str, gpu: Gpu) -> float:
    """The fastest of the tilings that a library chooses from, or the memory's time."""
    rate = peak_flops(gpu, kind) * max_efficiency(gpu, kind)
    if gpu.multiprocessors is None:
        return gpu.op_overhead_s + max(gemm.flops / rate, traffic_s(gemm.bytes_moved, gpu))
    return gpu.op_overhead_s + max(_tiled_s(gemm, rate, gpu), traffic_s(gemm.bytes_moved, gpu))


def _tiled_s(gemm: Gemm, rate: float, gpu: Gpu) -> float:
    """By the fastest tiling. Written out flat: searches ask for thousands of products."""
    assert gpu.multiprocessors is not None
    units, per_unit = gpu.multiprocessors, rate / gpu.multiprocessors
    m, n, k, batch = gemm.m, gemm.n, gemm.k, gemm.batch
    # Each part of a split depth writes its sum in float32, and they are added up.
    splits = [
        (split, k / split + TILE_START, traffic_s(8.0 * m * n * split, gpu) if split > 1 else 0.0)
        for split in (SPLITS if batch == 1 else (1,))
    ]
    best = math.inf
    for rows, columns, share in TILES:
        tiles = -(-m // rows) * -(-n // columns) * batch
        area, speed = 2.0 * rows * columns, per_unit * share
        for split, depth, again_s in splits:
            waves = -(-tiles * split // units)
            seconds = waves * (area * depth / speed) + again_s
            if seconds < best:
                best = seconds
    return best


def peak_flops(gpu: Gpu, kind: str) -> float:
    """Dense peak of a matrix type; fp8 falls back on bf16 where a device has none."""
    if kind == "fp8":
        return float(gpu.peak_flops.fp8 or gpu.peak_flops.bf16)
    return float(getattr(gpu.peak_flops, kind))


def max_efficiency(gpu: Gpu, kind: str) -> float:
    """Share of it that large products reach."""
    if kind == "fp8" and gpu.peak_flops.fp8:
        return gpu.fp8_efficiency or gpu.max_efficiency
    return gpu.max_efficiency


def traffic_s(num_bytes: float, gpu: Gpu) -> float:
    """Reading and writing memory at the rate that large kernels reach."""
    return num_bytes / (gpu.memory_bandwidth * gpu.memory_efficiency)


def elementwise_s(num_bytes: float, kernels: int, gpu: Gpu) -> float:
    """Kernels that only move memory.

    On a core what was measured corrects the moving alone: kernels of one kind in a row, without
    a program around them, do not show what it takes to come to each. A GPU comes to them meanwhile.
    """
    modelled_s = kernels * gpu.op_overhead_s + traffic_s(num_bytes, gpu)
    if not gpu.kernels or num_bytes <= 0:
        return modelled_s
    beside_s = 0.0 if gpu.core_share is None else gpu.op_overhead_s

    def model(one: MeasuredKernel) -> float:
        return gpu.op_overhead_s - beside_s + traffic_s(one.m, gpu)

    each = max(1, round(num_bytes / max(1, kernels)))
    apart_s = kernels * beside_s
    size = (each, 0, 0)
    return apart_s + correct(modelled_s - apart_s, "memory", "fp32", size, gpu.kernels, model)


ATTENTION_START = {"forward": 400, "backward": 600}
"""Keys per query at which attention reaches half of its long-sequence rate; assumed, not fitted."""

CORE_ATTENTION_START = 200
"""The same on a core of a CPU, whose kernel computes most of what the mask hides of short
sequences: measured from 128 to 2,048 tokens, heads of 32 to 128 wide, torch 2.13."""


def attention_s(
    flops: float,
    keys_seen: float,
    head_dim: int,
    kernel: str,
    kind: str,
    direction: str,
    gpu: Gpu,
) -> float:
    """Attention in one kernel: modelled, and corrected by what was measured near its size."""
    if flops <= 0:
        return 0.0
    modelled_s = _attention_model_s(flops, keys_seen, head_dim, kernel, kind, direction, gpu)
    if not gpu.kernels:
        return modelled_s

    def model(one: MeasuredKernel) -> float:
        work = 4.0 * one.m * (one.m / 2) * one.n * one.k  # scores and values, half of them masked
        return _attention_model_s(work, one.m / 2, one.k, kernel, kind, "forward", gpu)

    size = (max(1, round(2 * keys_seen)), 0, head_dim)
    return correct(modelled_s, "attention", kind, size, gpu.kernels, model)


def _attention_model_s(
    flops: float,
    keys_seen: float,
    head_dim: int,
    kernel: str,
    kind: str,
    direction: str,
    gpu: Gpu,
) -> float:
    """Its rate grows with the sequence, and suffers from narrow heads, on a CPU's core too."""
    others = {"cudnn": gpu.cudnn_attention, "triton": gpu.triton_attention}
    table = others.get(kernel) or gpu.flash_attention
    share = table.forward if direction == "forward" else table.backward
    keys = 2 * keys_seen  # of the whole sequence; causal kernels see half on average
    is_core = gpu.core_share is not None
    share *= keys / (keys + (CORE_ATTENTION_START if is_core else ATTENTION_START[direction]))
    share *= min(1.0, math.sqrt(math.sqrt(head_dim / 128)))
    return float(gpu.op_overhead_s + flops / (peak_flops(gpu, kind) * share))
