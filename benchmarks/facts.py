"""What this machine does while all ranks are busy: measured facts for the plan's predictions.

Ranks measure together, so that caches, memory and cores are shared as they are in the benchmark.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.config.local_hardware import cpu_facts, detect_machine
from launcher.config.schema import Hardware, Run
from launcher.runtime.calibrate import measure

MESSAGE_ELEMENTS = 2**18
"""Of the large message, float32: 1 MiB."""


def measure_machine() -> Hardware:
    """Kernels as `launch calibrate` measures them, and messages; every rank must call it.

    All ranks measure the same kernel at once; the median over ranks counts.
    """
    num_ranks = dist.get_world_size()
    rows = []
    for row in measure(torch.device("cpu")):
        rows.append(row)
        dist.barrier()  # none goes on to the next while others work on this one
    kernels_s = _median_over_ranks([row[5] for row in rows])
    latency_s, large_s = _median_over_ranks([_message_s(1), _message_s(MESSAGE_ELEMENTS)])
    facts = cpu_facts(detect_machine(), num_ranks)
    kernels: list[dict[str, Any]] = [
        {"kind": kind, "type": dtype, "m": m, "n": n, "k": k, "seconds": seconds}
        for (kind, dtype, m, n, k, _), seconds in zip(rows, kernels_s, strict=True)
    ]
    bandwidth = 4 * MESSAGE_ELEMENTS / max(1e-9, large_s - latency_s)
    return Hardware.model_validate({
        "name": "local", "device": "cpu", "gpus_per_node": num_ranks,
        "gpu": facts["gpu"] | {"kernels": kernels},
        "node": facts["node"] | {"latency_s": latency_s, "bandwidth": bandwidth},
    })  # fmt: skip


def on_hardware(run: Run, hardware: Hardware) -> Run:
    """The run with these facts, for the plan's prediction."""
    return run.model_copy(update={"hardware": hardware})


def _message_s(elements: int, rounds: int = 15) -> float:
    """A step around the ring of ranks: everyone sends and receives at once."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sent, received = torch.ones(elements), torch.empty(elements)
    taken = []
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        works = dist.batch_isend_irecv([
            dist.P2POp(dist.isend, sent, (rank + 1) % size),
            dist.P2POp(dist.irecv, received, (rank - 1) % size),
        ])  # fmt: skip
        for work in works:
            work.wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _median_over_ranks(mine: list[float]) -> list[float]:
    everyone: list[Tensor] = [torch.empty(len(mine)) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, torch.tensor(mine))
    return [float(value) for value in torch.stack(everyone).median(dim=0).values]
