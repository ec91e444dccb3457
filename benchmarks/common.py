"""What the benchmarks share: processes on this machine, and timing several things in turn."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Run `function(rank, *arguments)` on gloo processes that have met."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        mp.spawn(_enter, args=(world_size, store, function, arguments), nprocs=world_size)


def _enter(
    rank: int, world_size: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    function(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def time_in_turn(
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 3,
    cpu: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; each round starts with another one.

    A measurement lasts from the last rank's start to the last rank's end. `cpu` takes the seconds
    that all ranks' threads have worked meanwhile, which other work on the machine changes less.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    worked: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + warm_up):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            _barrier()
            started, begun = time.perf_counter(), time.process_time()
            contestants[name]()
            busy = time.process_time() - begun
            _barrier()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
                worked[name].append(busy)
    if cpu is not None:
        cpu |= {name: _sum_over_ranks(worked[name]) for name in names}
    return seconds


def _sum_over_ranks(mine: list[float]) -> list[float]:
    total = torch.tensor(mine, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return [float(value) for value in total]


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def report(
    title: str,
    seconds: dict[str, list[float]],
    ours: str,
    predicted: dict[str, float] | None = None,
    cpu: dict[str, list[float]] | None = None,
) -> None:
    """Medians, and the median of the round-by-round ratios of ours to each other contestant;
    seconds that the plan predicts, and those that processors have worked, beside.
    """
    print(title)
    for name, times in seconds.items():
        ratio = "" if name == ours else f"  {ours} / this: {_ratio(seconds, ours, name):.3f}"
        if cpu and name != ours:
            ratio += f" (CPU {_ratio(cpu, ours, name):.3f})"
        if predicted and name in predicted:
            ratio += f"  predicted {predicted[name] * 1e3:8.1f} ms"
        print(
            f"  {name:34} median {statistics.median(times) * 1e3:8.1f} ms"
            f"  min {min(times) * 1e3:8.1f} ms{ratio}"
        )


def _ratio(seconds: dict[str, list[float]], ours: str, other: str) -> float:
    pairs = zip(seconds[ours], seconds[other], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def machine() -> str:
    """One line about where this ran."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def rounds_argument(description: str, default: int) -> int:
    """The only option of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=default, help="counted rounds")
    return int(parser.parse_args().rounds)
