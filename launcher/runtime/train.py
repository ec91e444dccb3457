"""The training loop: steps, validation, metrics."""

from __future__ import annotations

import math
import time

import torch

from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer
from launcher.runtime.data import TokenWindows
from launcher.runtime.metrics import MetricsLog, write_summary
from launcher.runtime.optimizer import learning_rate
from launcher.runtime.pipeline.execute import average_loss, run_forward, run_schedule
from launcher.runtime.progress import Progress


def train(trainer: Trainer, files: RunFiles) -> None:
    """Run all steps of a trainer and leave metrics.jsonl and summary.json behind."""
    run = trainer.frozen.run
    log = MetricsLog(files.metrics, trainer)
    progress = Progress()
    while progress.step < run.train.steps:
        step = progress.step
        started = time.perf_counter()
        rate = learning_rate(run.optimizer, step, run.train.steps)
        loss, grad_norm = train_step(trainer, progress, rate)
        progress = progress.after(trainer.frozen.layout.global_batch_size)
        _require_finite("gradient norm", grad_norm, step)
        is_last = step == run.train.steps - 1
        if not is_last and (step + 1) % run.train.log_every:
            continue
        # Reading the loss waits for the device, so the clock is honest on CUDA too.
        mean_loss = float(average_loss(loss, trainer.groups))
        _require_finite("loss", mean_loss, step)
        entry = {
            "step": step,
            "loss": mean_loss,
            "grad_norm": grad_norm,
            "learning_rate": rate,
        }
        log.add(entry, elapsed_s=time.perf_counter() - started)
        if _validates(trainer, step):
            log.add_validation(step, validate(trainer))
    write_summary(files, trainer, log)


def train_step(
    trainer: Trainer, progress: Progress, rate: float
) -> tuple[torch.Tensor | None, float]:
    """One optimizer step: this rank's mean loss (last stage only) and the global gradient norm."""
    layout, groups = trainer.frozen.layout, trainer.groups
    microbatches = trainer.data.train.step_samples(progress, layout, groups.dp.index, groups.device)
    with trainer.engine.accumulate():
        loss = run_schedule(
            trainer.frozen.schedule, trainer.engine, trainer.channels, trainer.stage, microbatches
        )
    return loss, trainer.engine.step(rate)


def validate(trainer: Trainer) -> float:
    """Mean loss over the held-out batches, in nats per token, the same on every rank."""
    windows = trainer.data.validation
    assert windows is not None
    trainer.engine.module.eval()
    batches = trainer.frozen.run.train.validation_batches
    total = sum(_validation_loss(trainer, windows, batch) for batch in range(batches))
    trainer.engine.module.train()
    return total / batches


def _validation_loss(trainer: Trainer, windows: TokenWindows, batch: int) -> float:
    groups, layout = trainer.groups, trainer.frozen.layout
    place = Progress(step=batch, consumed_samples=batch * layout.global_batch_size)
    microbatches = windows.step_samples(place, layout, groups.dp.index, groups.device)
    loss = run_forward(
        trainer.frozen.schedule, trainer.engine, trainer.channels, trainer.stage, microbatches
    )
    return float(average_loss(loss, groups))


def _validates(trainer: Trainer, step: int) -> bool:
    if trainer.data.validation is None:
        return False
    every = trainer.frozen.run.train.validate_every
    is_last = step == trainer.frozen.run.train.steps - 1
    return is_last or (every is not None and (step + 1) % every == 0)


def _require_finite(name: str, value: float, step: int) -> None:
    """A loss or gradient that is not a number ends the run: nothing after it could be used."""
    if not math.isfinite(value):
        raise RunFailed(
            f"the {name} is {value} at step {step + 1}; try a lower optimizer.learning_rate, a "
            "longer optimizer.warmup_steps or optimizer.clip_grad_norm=1.0"
        )
