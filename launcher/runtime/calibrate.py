"""Measure this machine's kernels: matrix products, attention, memory traffic.

Run as `python -m launcher.runtime.calibrate PEAK FILE`: a CSV table. Not on standard output, where
libraries write, too.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F

HEADER = "device,peak_flops_fp32,kind,type,m,n,k,seconds\n"
ROUNDS, LEAST_S = 5, 0.02
COLD_BYTES, MOST_SETS = 2**26, 256
"""On a CPU a kernel is called with one set of operands after another, so many that caches do not
hold them, as in training; the same ones again and again would be up to a half quicker."""

GPU_MATMULS = tuple(
    (m, n, k)
    for m in (2048, 8192, 32768)
    for n, k in ((1024, 1024), (4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192))
)
CPU_MATMULS = (
    (256, 64, 64),
    (1024, 64, 128),
    (1024, 256, 128),
    (512, 256, 256),
    (512, 512, 256),
    (512, 256, 512),
    (1024, 768, 768),
    (1024, 3072, 768),
)
GPU_ATTENTION = tuple((length, 32, width) for length in (1024, 4096, 16384) for width in (64, 128))
CPU_ATTENTION = ((128, 4, 32), (512, 12, 64), (2048, 8, 64))
GPU_BYTES = (2**22, 2**26, 2**29)
CPU_BYTES = (2**16, 2**20, 2**25)


def measure(device: torch.device) -> Iterator[tuple[str, str, int, int, int, float]]:
    """(kind, type, m, n, k, seconds) of every kernel."""
    is_gpu = device.type == "cuda"
    types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if is_gpu else {})
    for name, dtype in types.items():
        for m, n, k in GPU_MATMULS if is_gpu else CPU_MATMULS:
            products = _repeat([(m, k), (k, n)], torch.matmul, device, dtype)
            yield "matmul", name, m, n, k, _seconds(products, device)
        for length, heads, width in GPU_ATTENTION if is_gpu else CPU_ATTENTION:
            attend = partial(F.scaled_dot_product_attention, is_causal=True)
            cores = _repeat([(1, heads, length, width)] * 3, attend, device, dtype)
            yield "attention", name, length, heads, width, _seconds(cores, device)
    for size in GPU_BYTES if is_gpu else CPU_BYTES:
        shape = (size // 8,)  # read and written: twice 4 bytes
        copies = _repeat([shape, shape], torch.Tensor.copy_, device, torch.float32)
        yield "memory", "fp32", size, 1, 1, _seconds(copies, device)


def _repeat(
    shapes: Sequence[tuple[int, ...]],
    kernel: Callable[..., object],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Callable[[], object]]:
    """The kernel with one set of operands after another, without end."""
    set_bytes = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    num_sets = 1 if device.type == "cuda" else min(MOST_SETS, 1 + COLD_BYTES // set_bytes)
    return cycle([
        partial(kernel, *(torch.randn(shape, device=device, dtype=dtype) for shape in shapes))
        for _ in range(num_sets)
    ])  # fmt: skip


def _seconds(calls: Iterator[Callable[[], object]], device: torch.device) -> float:
    """Median over rounds of the mean over calls that take LEAST_S together."""

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    next(calls)()
    sync()
    start = time.perf_counter()
    next(calls)()
    sync()
    count = max(1, int(LEAST_S / max(1e-7, time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            next(calls)()
        sync()
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


def row(device_name: str, peak: float, size: tuple[str, str, int, int, int], seconds: float) -> str:
    """A line of the table; `peak` is of the part of a core that was measured, and 1 of a GPU."""
    kind, dtype, m, n, k = size
    name = device_name.replace(",", " ")
    return f"{name},{peak!r},{kind},{dtype},{m},{n},{k},{seconds:.9g}\n"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)  # one core: processes that share a machine get such parts of it
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if is_gpu else torch.device("cpu")
    name = torch.cuda.get_device_name(0) if is_gpu else "cpu core"
    peak = 1.0 if is_gpu else float(sys.argv[1])
    rows = [row(name, peak, size, seconds) for *size, seconds in measure(device)]  # type: ignore[arg-type]
    Path(sys.argv[2]).write_text(HEADER + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
