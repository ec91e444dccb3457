"""Saving and loading in tests: workers of any layout, a folder, and what a step computes after."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.restore import Start, restore
from launcher.runtime.checkpoint.saver import Outcome, Saver, Target
from launcher.runtime.checkpoint.snapshot import Arena
from launcher.runtime.progress import Progress
from tests.runtime.parity import Case, Worker, build_worker

SAMPLES = 8
"""Of a step in every layout here: they see the same batches."""


@dataclass(frozen=True)
class Job:
    """Load from a run directory if there is one, train, and save into another.

    With `copy`, what was loaded is saved there as it is, first.
    """

    case: Case
    source: str | None
    target: str | None
    first_step: int
    num_steps: int = 1
    rule: str = "adamw"
    copy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a job saw, on this rank."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]


def case(**values: object) -> Case:
    """A case whose step has SAMPLES samples."""
    dp = values.get("dp", 1)
    assert isinstance(dp, int)
    return Case(num_microbatches=SAMPLES // dp, **values)  # type: ignore[arg-type]


def files_of(root: str) -> RunFiles:
    files = RunFiles(root=Path(root))
    files.checkpoints.mkdir(parents=True, exist_ok=True)
    return files


def work_all(rank: int, jobs: list[Job]) -> list[Trained]:
    """Jobs one after the other in the same processes."""
    return [do(job, number) for number, job in enumerate(jobs)]


def do(job: Job, number: int = 0) -> Trained:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        worker = build_worker(job.case, **RULES[job.rule])
        start = Start()
        if job.source is not None:
            board = new_board(worker, f"load{number}")
            start = restore(worker.engine, files_of(job.source), board)
            assert start.progress.step == job.first_step
            assert start.progress.consumed_samples == job.first_step * SAMPLES
    if job.copy is not None:
        save(worker, job.copy, job.first_step, new_board(worker, f"copy{number}"))
    losses, norms = [], []
    steps = range(job.first_step, job.first_step + job.num_steps)
    for step in steps:
        losses.append(worker.accumulate(step).item())
        norms.append(worker.engine.step(worker.learning_rate(step)))
    if job.target is not None:
        save(worker, job.target, steps.stop, new_board(worker, f"save{number}"))
    return Trained(losses=losses, grad_norms=norms, weights=worker.engine.weights())


RULES: dict[str, dict[str, object]] = {
    "adamw": {},
    "momentum": {"optimizer.name": "sgd", "optimizer.momentum": 0.9},
}


def new_board(worker: Worker, name: str) -> Board:
    """Jobs share a store: each has names of its own."""
    import torch.distributed as dist

    board = Board(worker.groups.rank, worker.groups.world_size)
    board._store = dist.PrefixStore(name, board._store)
    return board


def save(worker: Worker, root: str, step: int, board: Board) -> Outcome:
    target = Target(
        files=files_of(root), run=worker.run, layout=worker.layout, engine=worker.engine
    )
    saver = Saver(target, board, Arena(torch.device("cpu")), Start())
    saver.save(Progress(step=step, consumed_samples=step * SAMPLES), 0)
    saver.wait()
    (outcome,) = saver.outcomes()
    assert outcome.error is None, outcome.error
    return outcome
