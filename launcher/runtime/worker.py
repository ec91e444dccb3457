"""One rank of a run, from the frozen run directory to the last step."""

from __future__ import annotations

import datetime
import gc
import json
import signal
import sys
from pathlib import Path
from typing import Any

from launcher.config.schema import Run
from launcher.plan.patience import first_step_s, others_s
from launcher.plan.run_files import RunFiles
from launcher.runtime.frozen import Frozen, read_frozen
from launcher.runtime.neighbours import Neighbours
from launcher.runtime.process import (
    Place,
    end_with_parent,
    fail,
    leave,
    log_to,
    read_place,
    take_directory,
)
from launcher.runtime.pulse import SAVING_S, Pulse
from launcher.runtime.watchdog import Watchdog

_TIMEOUT_S = 600.0
"""A collective that takes longer than this has lost a rank without an error."""
_MARGIN_S = 120.0


def main(run_dir: str, stacks_dir: str | None = None) -> None:
    """Entry point of every rank: `python -m launcher.runtime.worker RUN_DIR [FOLDER]`.

    A rank that hangs writes its stacks into FOLDER, the run's logs by default.
    """
    # All that is loaded and built until the first step stays: looking through it for garbage, again
    # and again as it grows, takes half a second of a start.
    gc.disable()
    files, place = RunFiles(root=Path(run_dir)), read_place()
    end_with_parent()
    log_to(files.rank_log(place.rank))
    watchdog: Watchdog | None = None
    try:
        take_directory(files, place)
        frozen = read_frozen(files)
        pulse = Pulse(frozen.run.launch.hang_timeout_s)
        stacks = Path(stacks_dir) if stacks_dir else files.logs
        watchdog = Watchdog(files, place, pulse, stacks / f"hang_{place.rank}.txt")
        watchdog.start()
        Neighbours(files, place, pulse).start()
        work(files, place, frozen, pulse)
        watchdog.stop()
        # Python gives signals back to the system as it ends: a late request to save and end would
        # kill a rank that has done so.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except BaseException as error:  # whatever it is, the launcher must be able to name it
        if watchdog is not None:
            watchdog.wait_if_fired()
        fail(files, place, error)


def work(files: RunFiles, place: Place, frozen: Frozen, pulse: Pulse) -> None:
    """The run itself, as numbered steps; `frozen` is what the dry run showed."""
    # 1. torch, the device and the other ranks.
    timeout_s = collective_timeout_s(pulse.timeout_s)
    device = join_job(frozen.run, place, timeout_s)
    # 2. Process groups, this rank's stage, its engine and its links.
    pulse.begin("building")
    from launcher.runtime.build import build_trainer
    from launcher.runtime.checkpoint.board import Board
    from launcher.runtime.checkpoint.contract import require_same_run
    from launcher.runtime.checkpoint.init_from import load_initial_weights
    from launcher.runtime.checkpoint.restore import restore
    from launcher.runtime.train import train

    trainer = build_trainer(frozen, device, files.data, place)
    limit_groups(timeout_s)
    # 3. Where the run stands: the newest checkpoint that verifies, or the beginning.
    pulse.begin("loading")
    board = Board(place.rank, place.world_size)
    name_nodes(files, place, board)
    start = restore(trainer.engine, files, board)
    if start.name is None and frozen.run.train.init_from is not None:
        load_initial_weights(trainer.engine, frozen.run, board)
    if start.name is not None and place.rank == 0:
        require_same_run(files, start.name, frozen.run)
    # 4. Step by step to the end. Collections pass over what is there by now.
    gc.freeze()
    gc.enable()
    pulse.step = start.progress.step
    train(trainer, files, start, board, pulse)
    pulse.begin("leaving")
    leave_job()


def collective_timeout_s(hang_timeout_s: float | None) -> float:
    """Seconds that a collective waits: longer than the watchdog, which knows more about a hang."""
    if hang_timeout_s is None:
        return _TIMEOUT_S
    return max(first_step_s(hang_timeout_s), SAVING_S) + others_s(hang_timeout_s) + _MARGIN_S


def join_job(run: Run, place: Place, timeout_s: float = _TIMEOUT_S) -> Any:
    """Pick the device and meet the other ranks; returns the torch.device."""
    import torch
    import torch.distributed as dist

    is_cuda = run.hardware.device == "cuda"
    device = torch.device("cuda", place.local_rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    if place.world_size > 1:
        timeout = datetime.timedelta(seconds=timeout_s)
        dist.init_process_group("nccl" if is_cuda else "gloo", timeout=timeout)
    return device


def limit_groups(timeout_s: float) -> None:
    """The same timeout for every group: others than the first have a backend's, whoever made them.

    torch gives no public way to do so for groups that a library makes.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    c10d = dist.distributed_c10d
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(datetime.timedelta(seconds=timeout_s), group)


def name_nodes(files: RunFiles, place: Place, board: Any) -> None:
    """Leave the node of every rank on disk: one that hangs cannot tell it any more."""
    board.put(f"node.{place.rank}", place.node)
    if place.rank == 0:
        names = [f"node.{rank}" for rank in range(place.world_size)]
        nodes = board.wait(names, _TIMEOUT_S)
        partial = files.rank_nodes.with_suffix(".partial")
        partial.write_text(json.dumps(nodes) + "\n")
        partial.replace(files.rank_nodes)


def leave_job() -> None:
    """Part from the other ranks once all of them are done."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
