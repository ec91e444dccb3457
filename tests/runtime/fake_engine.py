"""A state without a model, for tests of what surrounds it: saving, killing, continuing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from launcher.checkpoint.boxes import whole
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.restore import Start
from launcher.runtime.checkpoint.saver import Saver, Target
from launcher.runtime.checkpoint.snapshot import Arena
from launcher.runtime.state import StatePiece
from tests.factory import make_run
from tests.runtime.stages import make_layout

SHAPES = {"weight/a": (33, 17), "exp_avg/a": (33, 17), "weight/b": (5,), "exp_avg/b": (5,)}
SAMPLES = 8


def expected(name: str, step: int) -> np.ndarray:
    """What a tensor holds after a step."""
    size = int(np.prod(SHAPES[name]))
    start = 1000 * step + 100 * list(SHAPES).index(name)
    return np.arange(start, start + size, dtype=np.float32).reshape(SHAPES[name])


class FakeEngine:
    """Replicas that hold the same tensors; `become` puts them where a step leaves them."""

    def __init__(self, copy: int = 0, num_copies: int = 1) -> None:
        self.copy, self.num_copies = copy, num_copies
        self.tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        self.loaded: int | None = None

    def become(self, step: int) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.from_numpy(expected(name, step)))

    def is_at(self, step: int) -> bool:
        return all(
            np.array_equal(tensor.numpy(), expected(name, step))
            for name, tensor in self.tensors.items()
        )

    def state(self) -> list[StatePiece]:
        return [
            StatePiece(
                kind=name.split("/")[0], name=name.split("/")[1], full_shape=SHAPES[name],
                box=whole(SHAPES[name]), tensor=tensor, is_owner=True,
                copy=self.copy, num_copies=self.num_copies,
            )
            for name, tensor in self.tensors.items()
        ]  # fmt: skip

    def state_loaded(self, step: int) -> None:
        self.loaded = step


def make_files(root: Path) -> RunFiles:
    files = RunFiles(root=root)
    files.checkpoints.mkdir(parents=True, exist_ok=True)
    return files


def make_board(rank: int = 0, world_size: int = 1, store: dist.Store | None = None) -> Board:
    return Board(rank, world_size, store)


def make_saver(
    engine: FakeEngine, files: RunFiles, board: Board, start: Start | None = None, fault=None,
    **policy: int,
) -> Saver:  # fmt: skip
    run, layout = make_run(checkpoint=policy), make_layout()
    target = Target(files=files, run=run, layout=layout, engine=engine)
    arena = Arena(torch.device("cpu"))
    return Saver(target, board, arena, start or Start(), fault or (lambda point: None))
