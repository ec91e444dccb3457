"""Measure this machine's kernels: matrix products, attention, memory traffic.

Run as `python -m launcher.runtime.calibrate PEAK`: a CSV table on standard output.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

HEADER = "device,peak_flops_fp32,kind,type,m,n,k,seconds"
ROUNDS, LEAST_S = 5, 0.02

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
            left = torch.randn(m, k, device=device, dtype=dtype)
            right = torch.randn(k, n, device=device, dtype=dtype)
            yield "matmul", name, m, n, k, _seconds(lambda a=left, b=right: a @ b, device)
        for length, heads, width in GPU_ATTENTION if is_gpu else CPU_ATTENTION:
            shape = (1, heads, length, width)
            q, k_, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))

            def attend(q=q, k=k_, v=v):  # type: ignore[no-untyped-def]
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            yield "attention", name, length, heads, width, _seconds(attend, device)
    for size in GPU_BYTES if is_gpu else CPU_BYTES:
        source = torch.zeros(size // 8, device=device)  # read and written: twice 4 bytes
        target = torch.empty_like(source)
        yield "memory", "fp32", size, 1, 1, _seconds(lambda a=target, b=source: a.copy_(b), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median over rounds of the mean over calls that take LEAST_S together."""

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    sync()
    start = time.perf_counter()
    work()
    sync()
    calls = max(1, int(LEAST_S / max(1e-7, time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        sync()
        rounds.append((time.perf_counter() - start) / calls)
    return statistics.median(rounds)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)  # one core: processes that share a machine get such parts of it
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if is_gpu else torch.device("cpu")
    name = torch.cuda.get_device_name(0).replace(",", " ") if is_gpu else "cpu core"
    print(HEADER)
    for kind, dtype, m, n, k, seconds in measure(device):
        print(f"{name},{sys.argv[1]},{kind},{dtype},{m},{n},{k},{seconds:.9g}", flush=True)


if __name__ == "__main__":
    main()
