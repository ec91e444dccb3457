"""How long training stands still for a save, and how near writing comes to the raw disk.

One process with 2 GB of state, in turn: a plain sequential write of as many bytes (blocks of 8 MiB,
then fsync), our save (in the background, checksum and rename included), our save waited for, a
load with verification, and torch's distributed checkpoint over its safetensors storage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from common import machine
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from launcher.checkpoint.boxes import whole
from launcher.config.schema import Checkpoint
from launcher.plan.records import Layout
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.restore import Start, restore
from launcher.runtime.checkpoint.saver import Saver, Target
from launcher.runtime.checkpoint.snapshot import Arena
from launcher.runtime.progress import Progress
from launcher.runtime.state import StatePiece

ROWS, COLUMNS, COUNT = 4096, 1365, 30
"""30 matrices with two moments each: 90 x 22.4 MB = 2.01 GB."""


class State:
    """An engine as far as saving sees it."""

    def __init__(self) -> None:
        self.tensors = {
            f"{kind}/layers.{number}.weight": torch.randn(ROWS, COLUMNS)
            for kind in ("weight", "exp_avg", "exp_avg_sq")
            for number in range(COUNT)
        }

    @property
    def num_bytes(self) -> int:
        return sum(4 * tensor.numel() for tensor in self.tensors.values())

    def state(self) -> list[StatePiece]:
        return [
            StatePiece(
                kind=name.partition("/")[0], name=name.partition("/")[2],
                full_shape=(ROWS, COLUMNS), box=whole((ROWS, COLUMNS)), tensor=tensor,
                is_owner=True,
            )
            for name, tensor in self.tensors.items()
        ]  # fmt: skip

    def state_loaded(self, step: int) -> None:
        pass


def write_raw(path: Path, content: memoryview) -> None:
    with path.open("wb", buffering=0) as stream:
        for start in range(0, len(content), 8 * 2**20):
            stream.write(content[start : start + 8 * 2**20])
        os.fsync(stream.fileno())
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="on the disk to measure; a temporary one")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(root, options.rounds)
    finally:
        shutil.rmtree(root)


def measure(root: Path, rounds: int) -> None:
    state, arena = State(), Arena(torch.device("cpu"))
    files = RunFiles(root=root)
    saver = Saver(target(files, state), Board(0, 1), arena, Start())
    raw = memoryview(torch.randn(state.num_bytes // 4).numpy()).cast("B")
    seconds: dict[str, list[float]] = {}
    stalls: list[float] = []
    step = 0

    def save() -> None:
        nonlocal step
        step += 1
        saver.save(Progress(step=step), 0)
        saver.wait()  # asynchronous saves return before this
        (outcome,) = saver.outcomes()
        assert outcome.error is None, outcome.error
        stalls.append(outcome.stall_s)

    def load() -> None:
        assert restore(state, files, Board(0, 1)).progress.step == step

    def torch_save() -> None:
        writer = HuggingFaceStorageWriter(str(root / "dcp"), save_distributed=True)
        dcp.save(state.tensors, storage_writer=writer)
        shutil.rmtree(root / "dcp")

    contestants: dict[str, Callable[[], None]] = {
        "raw write and fsync": lambda: write_raw(root / "raw", raw),
        "save, waited for": save,
        "load, verified": load,
        "torch DCP, safetensors storage": torch_save,
    }
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            os.sync()
            started = time.perf_counter()
            contestant()
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    size = state.num_bytes
    print(f"{machine()}; {size / 1e9:.2f} GB of state, {rounds} rounds")
    for name, times in seconds.items():
        rate = size / statistics.median(times) / 1e6
        print(f"  {name:32} median {statistics.median(times):6.2f} s  {rate:6,.0f} MB/s")
    stalls = stalls[1:]
    pairs = list(zip(seconds["raw write and fsync"], seconds["save, waited for"], strict=True))
    both = list(zip(stalls, pairs, strict=True))
    writes = [raw_s / (save_s - stall) for stall, (raw_s, save_s) in both]
    shares = [raw_s / save_s for raw_s, save_s in pairs]
    waits = [stall / whole_s for stall, (_, whole_s) in both]
    print(
        f"  share of the raw write's speed: {statistics.median(writes):.2f} while writing, "
        f"{statistics.median(shares):.2f} with the copy before it"
    )
    print(
        f"  training stands still: {1e3 * statistics.median(stalls):.0f} ms, "
        f"{statistics.median(waits):.2f} of a save that is waited for"
    )


def target(files: RunFiles, state: State) -> Target:
    """Everything but the checkpoint policy is only noted in the manifest."""
    files.checkpoints.mkdir()
    run = _Run()
    layout = Layout(
        world_size=1, nodes=1, gpus_per_node=1, tp=1, cp=1, ep=1, pp=1, vpp=1, dp=1, zero_stage=0,
        micro_batch_size=1, num_microbatches=1, global_batch_size=1, sequence_length=1,
        schedule="1f1b", recompute="none", order=("tp", "cp", "dp", "pp"),
    )  # fmt: skip
    return Target(files=files, run=run, layout=layout, engine=state)  # type: ignore[arg-type]


class _Run:
    """As much of a run as a save looks at."""

    checkpoint = Checkpoint(keep=1)

    class train:  # noqa: N801
        seed = 1

    @staticmethod
    def model_dump(mode: str) -> dict[str, str]:
        return {}


if __name__ == "__main__":
    main()
