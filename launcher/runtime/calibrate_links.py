"""Measure what ranks of this machine take to exchange data, as rows of the table of kernels.

Run as `python -m launcher.runtime.calibrate_links PEAK CORES`: the rows on standard output.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.runtime.collectives import (
    exchange,
    start_gather,
    start_pass_on,
    start_scatter,
    sum_over,
)
from launcher.runtime.groups import Axis

ROUNDS, CALLS = 5, 8
CPU_RANKS, CPU_BYTES = (2, 4), (2**12, 2**18, 2**21)
GPU_BYTES = (2**16, 2**20, 2**24, 2**28)
LIMIT = timedelta(seconds=120)
"""Longest that a rank waits for the others."""

Operation = Callable[[Tensor, Axis], object]
OPERATIONS: dict[str, Operation] = {
    "all_reduce": sum_over,
    "all_gather": lambda x, axis: start_gather(x.chunk(axis.size)[0], axis).wait(),
    "reduce_scatter": lambda x, axis: start_scatter(x.view(axis.size, -1), axis).wait(),
    "all_to_all": lambda x, axis: exchange(x.view(axis.size, -1), axis),
    "send_recv": lambda x, axis: start_pass_on(x, axis).wait(),
}
"""As training does them: `x` is the whole that the plan counts."""


def group_sizes(num_gpus: int) -> tuple[int, ...]:
    """Ranks that are tried: of GPUs the powers of two that there are, of a CPU two and four."""
    if not num_gpus:
        return CPU_RANKS
    return tuple(2**power for power in range(1, num_gpus.bit_length()))


def measure(axis: Axis, device: torch.device) -> Iterator[tuple[str, int, float]]:
    """(operation, bytes of the whole, seconds); all ranks of the axis call it together."""
    for name, operation in OPERATIONS.items():
        for size in CPU_BYTES if device.type == "cpu" else GPU_BYTES:
            whole = torch.zeros(size // 4, device=device)
            yield name, size, _seconds(operation, whole, axis)


def _seconds(operation: Operation, whole: Tensor, axis: Axis) -> float:
    """Median over rounds of what a call adds to computing between calls.

    On a CPU ranks that only exchange are awake when a message comes; those that compute are not
    always, and not at the same moment.
    """
    work = torch.rand(512, 256) if whole.is_cpu else None

    def compute() -> None:
        if work is not None:
            torch.mm(work, work[:256])

    def both() -> None:
        compute()
        operation(whole, axis)

    both()
    added = [(_timed(both, whole) - _timed(compute, whole)) / CALLS for _ in range(ROUNDS)]
    return max(1e-7, statistics.median(added))


def _timed(call: Callable[[], None], whole: Tensor) -> float:
    """CALLS in a row, begun and ended by all together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    if whole.is_cuda:
        torch.cuda.synchronize(whole.device)
    dist.barrier()
    return time.perf_counter() - start


def run_rank(rank: int, size: int, store: str, device_name: str, peak: float) -> None:
    """One of `size` ranks; the first prints the rows."""
    torch.set_num_threads(1)
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")
    if is_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if is_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=size,
        timeout=LIMIT,
    )  # fmt: skip
    axis = Axis(
        name="tp", index=rank, size=size, ranks=tuple(range(size)), group=dist.group.WORLD
    )  # fmt: skip
    for name, num_bytes, seconds in measure(axis, device):
        if rank == 0:
            row = f"{device_name},{peak!r},{name},fp32,{num_bytes},{size},1,{seconds:.9g}"
            print(row, flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Print the rows of every group size."""
    peak, cores = float(sys.argv[1]), int(sys.argv[2])
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = torch.cuda.get_device_name(0).replace(",", " ") if num_gpus else "cpu core"
    for size in group_sizes(num_gpus):
        # Ranks that outnumber the cores had so much less of one each.
        share = 1.0 if num_gpus else min(1.0, cores / size)
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            torch.multiprocessing.spawn(run_rank, (size, store, name, share * peak), nprocs=size)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
