"""A rank that only saves: what the tests of faults kill. Imports little, to start fast."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch.distributed as dist

from launcher.runtime.checkpoint.restore import restore
from launcher.runtime.progress import Progress
from tests.runtime.fake_engine import SAMPLES, FakeEngine, make_board, make_files, make_saver


def save_forever(rank: int, root: str, folder: str, die_at: int | None) -> None:
    """One of two ranks: continue, check what was loaded, save step after step, note each."""
    board = make_board(rank, 2, dist.FileStore(f"{folder}/store", 2))
    files, engine = make_files(Path(root)), FakeEngine(copy=rank, num_copies=2)
    start = restore(engine, files, board)
    step = start.progress.step
    is_right = engine.is_at(step) if start.name else step == 0
    Path(f"{folder}/started_{rank}").write_text(json.dumps([step, is_right, len(start.refused)]))
    passed = 0

    def fault(point: str) -> None:
        nonlocal passed
        passed += 1
        if passed == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    saver = make_saver(engine, files, board, start, fault, keep=2)
    while True:
        step += 1
        engine.become(step)
        saver.save(Progress(step=step, consumed_samples=SAMPLES * step), 0)
        engine.become(step + 1)  # training goes on at once: the copy must not see it
        saver.wait()
        if rank == 0 and [outcome.error for outcome in saver.outcomes()] == [None]:
            with open(f"{folder}/saved", "a") as stream:
                stream.write(f"{step}\n")
