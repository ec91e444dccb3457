"""How a test runs a function on several gloo processes and gets every rank's result.

results = run_ranks(4, my_function, arg)      # my_function(rank, arg) at a module's top level

Processes are forked from one server that has torch loaded, so a start costs well under a second.
"""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

PRELOAD = [
    "torch", "torch.distributed", "torch.utils.checkpoint", "torch._dynamo",
    "torch.distributed.fsdp", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer",
    "launcher.runtime.model", "launcher.runtime.engine_deepspeed", "launcher.runtime.engine_fsdp2",
    "launcher.runtime.zero_state", "pytest", "tests.runtime.parity", "tests.runtime.saver_loop",
]  # fmt: skip


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0
) -> list[Any]:
    """Results in the order of ranks; the first rank's failure ends all and is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main,
                args=(rank, world_size, store, timeout_s, sender, function, args),
                daemon=True,
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = [rank for rank in range(len(pipes)) if rank not in results]
            raise TimeoutError(f"ranks {silent} gave no result in time")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                is_good, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died") from None
            if not is_good:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    rank: int, world_size: int, store: str, timeout_s: float, sender: Connection,
    function: Callable[..., Any], args: tuple[Any, ...],
) -> None:  # fmt: skip
    import torch
    import torch.distributed as dist

    # What was imported before the fork lives as long as the process: DeepSpeed collects garbage
    # often, and would look through all of it each time.
    gc.freeze()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    try:
        if world_size > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size,
                timeout=datetime.timedelta(seconds=timeout_s),
            )  # fmt: skip
        message = (True, function(rank, *args))
    except BaseException:
        message = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(message))
    os._exit(0)
