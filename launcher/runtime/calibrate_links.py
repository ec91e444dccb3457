"""Measure what ranks of this machine take to exchange data, as rows of the table of kernels.

Every rank runs `python -m launcher.runtime.calibrate_links PEAK CORES FILE` under torchrun; the
first adds the rows to the file.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.runtime.calibrate import row
from launcher.runtime.collectives import (
    exchange,
    start_gather,
    start_pass_on,
    start_scatter,
    sum_over,
)
from launcher.runtime.groups import Axis

ROUNDS, LEAST_S, FEWEST, MOST = 5, 0.03, 8, 1000
"""A round is so many calls, and as long as that: clocks and barriers are no part of them."""
CPU_BYTES = (2**12, 2**18, 2**21)
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


def measure(axis: Axis, device: torch.device) -> Iterator[tuple[str, int, float]]:
    """(operation, bytes of the whole, seconds); all ranks of the axis call it together.

    A size whose time is lost in the noise is left out.
    """
    for name, operation in OPERATIONS.items():
        for size in CPU_BYTES if device.type == "cpu" else GPU_BYTES:
            seconds = added_s(operation, torch.zeros(size // 4, device=device), axis)
            if seconds > 0:
                yield name, size, seconds


def added_s(operation: Operation, whole: Tensor, axis: Axis) -> float:
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
    longest = torch.tensor([_timed(both, whole, FEWEST) / FEWEST], device=whole.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)  # all ranks make as many calls
    calls = max(FEWEST, min(MOST, math.ceil(LEAST_S / max(1e-9, float(longest)))))
    return statistics.median(
        (_timed(both, whole, calls) - _timed(compute, whole, calls)) / calls for _ in range(ROUNDS)
    )


def _timed(call: Callable[[], None], whole: Tensor, calls: int) -> float:
    """So many in a row, begun and ended by all together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if whole.is_cuda:
        torch.cuda.synchronize(whole.device)
    dist.barrier()
    return time.perf_counter() - start


def share_of_core(cores: int, ranks: int) -> float:
    """Of a core, what each of these ranks has while all compute."""
    return min(1.0, cores / ranks)


def main() -> None:
    """Take part; the first rank adds its rows."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")
    if is_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_gpu else "gloo", timeout=LIMIT)
    axis = Axis(name="tp", index=rank, size=size, ranks=tuple(range(size)), group=dist.group.WORLD)
    peak = 1.0 if is_gpu else float(sys.argv[1]) * share_of_core(int(sys.argv[2]), size)
    name = torch.cuda.get_device_name(device) if is_gpu else "cpu core"
    rows = [
        row(name, peak, (kind, "fp32", num_bytes, size, 1), seconds)
        for kind, num_bytes, seconds in measure(axis, device)
    ]
    if rank == 0:
        with Path(sys.argv[3]).open("a", encoding="utf-8") as table:
            table.write("".join(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
