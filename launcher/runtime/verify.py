"""Whether a layout computes what one process computes: both are trained and compared."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer, build_trainer
from launcher.runtime.frozen import read_frozen
from launcher.runtime.optimizer import learning_rate
from launcher.runtime.parallel.shard import Shard, local_shards
from launcher.runtime.pipeline.execute import average_loss
from launcher.runtime.process import end_with_parent, fail, leave, log_to, read_place
from launcher.runtime.progress import Progress
from launcher.runtime.reference import Reference, is_arbitrary, single_layout, train_reference
from launcher.runtime.train import train_step
from launcher.runtime.verify_data import LineDocuments
from launcher.runtime.worker import join_job, leave_job

TOLERANCE = 1e-5
"""Relative; float32 keeps 24 bits (6e-8), and sums in another order lose a few of them."""


@dataclass(frozen=True, kw_only=True)
class LocalWeight:
    """One rank's piece of one parameter, after the last step."""

    rank: int
    shard: Shard
    value: Tensor


def main(run_dir: str) -> None:
    """Entry point of every rank: `python -m launcher.runtime.verify RUN_DIR`."""
    files, place = RunFiles(root=Path(run_dir)), read_place()
    end_with_parent()
    log_to(files.rank_log(place.rank))
    try:
        frozen = read_frozen(files)
        device = join_job(frozen.run, place)
        trainer = build_trainer(frozen, device, files.data, place)
        if frozen.run.data.packing == "documents":
            trainer.data.train.samples = LineDocuments(trainer.data.train.samples)
        report = compare(trainer)
        if report is not None:
            files.verification.write_text(json.dumps(report, indent=1) + "\n")
        leave_job()
    except BaseException as error:
        fail(files, place, error)


def compare(trainer: Trainer) -> dict[str, Any] | None:
    """Train both, and report the differences on rank 0; every rank must call it."""
    run = trainer.frozen.run
    losses, norms = [], []
    for progress in _steps(trainer):
        rate = learning_rate(run.optimizer, progress.step, run.train.steps)
        loss, norm = train_step(trainer, progress, rate)
        losses.append(float(average_loss(loss, trainer.groups)))
        norms.append(norm)
    weights = _gather_weights(trainer)
    if trainer.groups.rank != 0:
        return None
    reference = _train_alone(trainer)
    return _report(trainer, reference, losses, norms, weights)


def _steps(trainer: Trainer) -> list[Progress]:
    """Where the run stands before each of its steps."""
    size = trainer.frozen.layout.global_batch_size
    steps = range(trainer.frozen.run.train.steps)
    return [Progress(step=step, consumed_samples=step * size) for step in steps]


def _gather_weights(trainer: Trainer) -> list[LocalWeight]:
    """Every rank's weights on rank 0; toy sizes only."""
    module, rank = trainer.engine.module, trainer.groups.rank
    shards, values = local_shards(module), trainer.engine.weights()
    mine = [LocalWeight(rank=rank, shard=shards[name], value=values[name]) for name in values]
    if trainer.groups.world_size == 1:
        return mine
    everyone: list[Any] | None = [None] * trainer.groups.world_size if rank == 0 else None
    dist.gather_object(mine, everyone)
    return [weight for weights in everyone or [] for weight in weights]


def _train_alone(trainer: Trainer) -> Reference:
    """The same steps in one process of plain torch."""
    layout = single_layout(trainer.frozen.layout)
    steps = (trainer.data.train.step_samples(place, layout, 0) for place in _steps(trainer))
    return train_reference(trainer.frozen.run, layout, steps)


def _report(
    trainer: Trainer,
    reference: Reference,
    losses: list[float],
    norms: list[float],
    weights: list[LocalWeight],
) -> dict[str, Any]:
    steps = [
        {
            "step": step,
            "loss": losses[step],
            "reference_loss": reference.losses[step],
            "loss_difference": _relative(losses[step], reference.losses[step]),
            "grad_norm": norms[step],
            "reference_grad_norm": reference.grad_norms[step],
            "grad_norm_difference": _relative(norms[step], reference.grad_norms[step]),
        }
        for step in range(len(losses))
    ]
    model = trainer.frozen.run.model
    tensors = [
        {
            "name": weight.shard.name,
            "rank": weight.rank,
            "difference": _weight_difference(weight, reference.weights[weight.shard.name]),
        }
        for weight in weights
        if not is_arbitrary(model, weight.shard.name)
    ]
    tensors.sort(key=lambda entry: -float(str(entry["difference"])))
    largest = {
        "loss": max(step["loss_difference"] for step in steps),
        "grad_norm": max(step["grad_norm_difference"] for step in steps),
        "weights": tensors[0]["difference"],
    }
    left_out = sorted({w.shard.name for w in weights if is_arbitrary(model, w.shard.name)})
    return {
        # A difference that is not a number is no agreement.
        "passed": all(float(str(value)) <= TOLERANCE for value in largest.values()),
        "tolerance": TOLERANCE,
        "largest": largest,
        "steps": steps,
        "weights": tensors[:10],
        "num_tensors": len(tensors),
        "left_out": left_out,
        "layout": asdict(trainer.frozen.layout),
    }


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / max(abs(expected), 1e-30)


def _weight_difference(weight: LocalWeight, whole: Tensor) -> float:
    """L2 distance of a rank's piece from the reference's, relative to the piece's own norm."""
    shard = weight.shard
    expected = whole
    if shard.dim is not None:
        expected = whole.narrow(shard.dim, shard.start, shard.stop - shard.start)
    value = weight.value
    for dim, size in enumerate(expected.shape):
        value = value.narrow(dim, 0, size)  # without the vocabulary's padding
    scale = torch.linalg.vector_norm(expected.double()).clamp(min=1e-30)
    return float(torch.linalg.vector_norm(value.double() - expected.double()) / scale)


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
