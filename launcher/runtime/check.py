"""One device of one node before the job: a timed matrix product, then an all-reduce of all ranks.

A process of its own, so that what hangs here is ended without the training being touched. It says
what it has done in lines of JSON on standard output; launcher/node/checks/processes.py reads them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.runtime.process import end_with_parent

_SIZE = {"cuda": 8192, "cpu": 256}
"""Rows and columns of the matrices; on a GPU some milliseconds, whatever its model."""
_BUSY_S = {"cuda": 0.5, "cpu": 0.3}
"""So long products are computed: a GPU lowers its clocks under load, not before."""
_BATCH = {"cuda": 10, "cpu": 1}
REDUCED_BYTES = {"cuda": 64 * 2**20, "cpu": 2**20}
_ROUNDS = 5
_POLL_S = 0.05


def main(words: list[str]) -> int:
    """Check one device; 0 where everything was done."""
    end_with_parent()
    options = _read_options(words)
    try:
        _check(options)
    except Exception as error:  # whatever it is, the node must be named with it
        first = (str(error).strip().splitlines() or [""])[0]
        say(error=f"{type(error).__name__}: {first}")
        return 1
    return 0


def say(**fields: Any) -> None:
    """One line for the agent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _read_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher.runtime.check")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--local-rank", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--host", required=True, help="this node, as the others know it")
    parser.add_argument("--meeting", type=Path, required=True, help="file with rank 0's address")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
    return parser.parse_args(words)


def _check(options: argparse.Namespace) -> None:
    # 1. The device.
    device = torch.device(options.device)
    if options.device == "cuda":
        if torch.cuda.device_count() <= options.local_rank:
            raise RuntimeError(
                f"torch sees {torch.cuda.device_count()} GPUs here, and rank {options.local_rank} "
                "of the node needs one of its own"
            )
        device = torch.device("cuda", options.local_rank)
        torch.cuda.set_device(device)
    seconds, is_right = time_product(device)
    say(stage="product", seconds=seconds, is_right=is_right)
    if options.world_size == 1:
        return
    # 2. The others.
    timeout = datetime.timedelta(seconds=options.timeout)
    store = _meet(options, timeout)
    say(stage="met")
    backend = "nccl" if options.device == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=options.rank, world_size=options.world_size, timeout=timeout
    )
    # 3. All of them at once.
    seconds, is_right = time_all_reduce(device, options.world_size)
    say(stage="all_reduce", seconds=seconds, is_right=is_right)
    # The process that holds the store leaves last.
    dist.barrier()
    dist.destroy_process_group()


def time_product(device: torch.device) -> tuple[float, bool]:
    """Seconds of one product of two square matrices, and whether the result is right.

    Half precision on GPUs; its result, a whole number below 2**15, has no rounding error.
    """
    kind = device.type
    size, batch = _SIZE[kind], _BATCH[kind]
    dtype = torch.float16 if kind == "cuda" else torch.float32
    ones = torch.ones(size, size, dtype=dtype, device=device)
    result = ones @ ones
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < _BUSY_S[kind] or len(times) < 2:
        _finish(device)
        started = time.perf_counter()
        for _ in range(batch):
            result = ones @ ones
        _finish(device)
        times.append((time.perf_counter() - started) / batch)
    is_right = bool((result == size).all())
    # A GPU in its steady state; a core at its best: others may use it as well, and then a short
    # product is computed between two of their turns.
    seconds = statistics.median(times[len(times) // 2 :]) if kind == "cuda" else min(times)
    return seconds, is_right


def time_all_reduce(device: torch.device, world_size: int) -> tuple[float, bool]:
    """Seconds of one sum over all ranks, and whether it is right."""
    count = REDUCED_BYTES[device.type] // 4
    times = []
    is_right = True
    for _ in range(1 + _ROUNDS):  # the first one makes the connections
        ones = torch.ones(count, dtype=torch.float32, device=device)
        _finish(device)
        started = time.perf_counter()
        dist.all_reduce(ones)
        _finish(device)
        times.append(time.perf_counter() - started)
        is_right = is_right and bool((ones == world_size).all())
    return statistics.median(times[1:]), is_right


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _meet(options: argparse.Namespace, timeout: datetime.timedelta) -> dist.Store:
    """Rank 0 takes a port that is free and writes it down; the others read it."""
    if options.rank == 0:
        store = dist.TCPStore(
            options.host, 0, options.world_size, is_master=True, wait_for_workers=False,
            timeout=timeout,
        )  # fmt: skip
        partial = options.meeting.with_suffix(".partial")
        partial.write_text(json.dumps({"host": options.host, "port": store.port}))
        partial.replace(options.meeting)
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        try:
            address = json.loads(options.meeting.read_text())
        except (OSError, ValueError):
            time.sleep(_POLL_S)
            continue
        return dist.TCPStore(
            address["host"], int(address["port"]), options.world_size, is_master=False,
            timeout=timeout,
        )  # fmt: skip
    raise TimeoutError("rank 0 has not said where to meet, or this node does not see its file")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
