"""One rank of a run, from the frozen run directory to the last step."""

from __future__ import annotations

import datetime
import signal
import sys
from pathlib import Path
from typing import Any

from launcher.config.schema import Run
from launcher.plan.run_files import RunFiles
from launcher.runtime.frozen import read_frozen
from launcher.runtime.process import (
    Place,
    end_with_parent,
    fail,
    log_to,
    read_place,
    take_directory,
)

# A collective that takes longer than this has lost a rank without an error.
_TIMEOUT = datetime.timedelta(minutes=10)


def main(run_dir: str) -> None:
    """Entry point of every rank: `python -m launcher.runtime.worker RUN_DIR`."""
    files, place = RunFiles(root=Path(run_dir)), read_place()
    end_with_parent()
    log_to(files.rank_log(place.rank))
    try:
        take_directory(files, place)
        work(files, place)
        # Python gives signals back to the system as it ends: a late request to save and end would
        # kill a rank that has done so.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except BaseException as error:  # whatever it is, the launcher must be able to name it
        fail(files, place, error)


def work(files: RunFiles, place: Place) -> None:
    """The run itself, as numbered steps."""
    # 1. The frozen files: the same that the dry run showed.
    frozen = read_frozen(files)
    # 2. torch, the device and the other ranks.
    device = join_job(frozen.run, place)
    # 3. Process groups, this rank's stage, its engine and its links.
    from launcher.runtime.build import build_trainer
    from launcher.runtime.checkpoint.board import Board
    from launcher.runtime.checkpoint.contract import require_same_run
    from launcher.runtime.checkpoint.init_from import load_initial_weights
    from launcher.runtime.checkpoint.restore import restore
    from launcher.runtime.train import train

    trainer = build_trainer(frozen, device, files.data, place)
    # 4. Where the run stands: the newest checkpoint that verifies, or the beginning.
    board = Board(place.rank, place.world_size)
    start = restore(trainer.engine, files, board)
    if start.name is None and frozen.run.train.init_from is not None:
        load_initial_weights(trainer.engine, frozen.run, board)
    if start.name is not None and place.rank == 0:
        require_same_run(files, start.name, frozen.run)
    # 5. Step by step to the end.
    train(trainer, files, start, board)
    leave_job()


def join_job(run: Run, place: Place) -> Any:
    """Pick the device and meet the other ranks; returns the torch.device."""
    import torch
    import torch.distributed as dist

    is_cuda = run.hardware.device == "cuda"
    device = torch.device("cuda", place.local_rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    if place.world_size > 1:
        dist.init_process_group("nccl" if is_cuda else "gloo", timeout=_TIMEOUT)
    return device


def leave_job() -> None:
    """Part from the other ranks once all of them are done."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
