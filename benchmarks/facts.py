"""What this machine does while all ranks are busy: measured facts for the plan's predictions.

Ranks measure together, so that caches, memory and cores are shared as they are in the benchmark.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.config.local_hardware import cpu_facts, detect_machine
from launcher.config.schema import Hardware, Run
from launcher.runtime.calibrate import measure
from launcher.runtime.calibrate_links import measure as measure_exchanges
from launcher.runtime.groups import Axis


def measure_machine() -> Hardware:
    """Kernels and exchanges as `launch calibrate` measures them; every rank must call it.

    All ranks measure the same kernel at once; the median over ranks counts.
    """
    num_ranks = dist.get_world_size()
    rows = []
    for row in measure(torch.device("cpu")):
        rows.append(row)
        dist.barrier()  # none goes on to the next while others work on this one
    ranks = tuple(range(num_ranks))
    axis = Axis(
        name="tp", index=dist.get_rank(), size=num_ranks, ranks=ranks, group=dist.group.WORLD
    )
    for kind, num_bytes, seconds in measure_exchanges(axis, torch.device("cpu")):
        rows.append((kind, "fp32", num_bytes, num_ranks, 1, seconds))
    seconds_of_all = _median_over_ranks([row[5] for row in rows])
    kernels: list[dict[str, Any]] = [
        {"kind": kind, "type": dtype, "m": m, "n": n, "k": k, "seconds": seconds}
        for (kind, dtype, m, n, k, _), seconds in zip(rows, seconds_of_all, strict=True)
    ]
    facts = cpu_facts(detect_machine(), num_ranks)
    return Hardware.model_validate({
        "name": "local", "device": "cpu", "gpus_per_node": num_ranks,
        "gpu": facts["gpu"] | {"kernels": kernels}, "node": facts["node"],
    })  # fmt: skip


def on_hardware(run: Run, hardware: Hardware) -> Run:
    """The run with these facts, for the plan's prediction."""
    return run.model_copy(update={"hardware": hardware})


def _median_over_ranks(mine: list[float]) -> list[float]:
    everyone: list[Tensor] = [torch.empty(len(mine)) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, torch.tensor(mine))
    return [float(value) for value in torch.stack(everyone).median(dim=0).values]
