"""The training loop: steps, validation, metrics."""

from __future__ import annotations

import math
import time

import torch

from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.keeper import build_keeper
from launcher.runtime.checkpoint.restore import Start
from launcher.runtime.data import Batches
from launcher.runtime.metrics import MetricsLog, write_summary
from launcher.runtime.optimizer import learning_rate
from launcher.runtime.own_runs import append_run
from launcher.runtime.pipeline.execute import average_loss, run_forward, run_schedule
from launcher.runtime.progress import Progress
from launcher.runtime.pulse import Pulse


def train(trainer: Trainer, files: RunFiles, start: Start, board: Board, pulse: Pulse) -> None:
    """Run the steps of a trainer from where it starts; leave metrics and summary.json behind."""
    run = trainer.frozen.run
    if trainer.groups.rank == 0:
        files.summary.unlink(missing_ok=True)  # of an attempt that was stopped
    log = MetricsLog(files, trainer, start)
    keeper = build_keeper(trainer, files, start, board, log.add_event, pulse)
    progress, is_stopped = start.progress, False
    pulse.begin("training")
    while progress.step < run.train.steps and not is_stopped:
        is_last = progress.step == run.train.steps - 1
        progress = _logged_step(trainer, progress, log, is_last, pulse)
        is_stopped = keeper.after_step(progress, is_last)
    keeper.close()
    log.close()
    write_summary(files, trainer, log, progress.step)
    if trainer.groups.rank == 0:
        append_run(files, trainer.frozen)


def _logged_step(
    trainer: Trainer, progress: Progress, log: MetricsLog, is_last: bool, pulse: Pulse
) -> Progress:
    """One step, its line in the metrics, and a validation where one is due."""
    run, step = trainer.frozen.run, progress.step
    started = time.perf_counter()
    rate = learning_rate(run.optimizer, step, run.train.steps)
    loss, grad_norm = train_step(trainer, progress, rate)
    _require_finite("gradient norm", grad_norm, step)
    if is_last or (step + 1) % run.train.log_every == 0:
        # Reading the loss waits for the device, so the clock is honest on CUDA too.
        mean_loss = float(average_loss(loss, trainer.groups))
        _require_finite("loss", mean_loss, step)
        entry = {"step": step, "loss": mean_loss, "grad_norm": grad_norm, "learning_rate": rate}
        log.add(entry, elapsed_s=time.perf_counter() - started)
        pulse.step_done(step + 1)
        if _validates(trainer, step):
            log.add_validation(step, validate(trainer, pulse))
    pulse.step_done(step + 1)
    return progress.after(trainer.frozen.layout.global_batch_size)


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


def validate(trainer: Trainer, pulse: Pulse | None = None) -> float:
    """Mean loss over the held-out batches, in nats per token, the same on every rank."""
    pulse = pulse or Pulse()
    pulse.begin("validation")
    windows = trainer.data.validation
    assert windows is not None
    trainer.engine.module.eval()
    batches = trainer.frozen.run.train.validation_batches
    total = 0.0
    for batch in range(batches):
        total += _validation_loss(trainer, windows, batch)
        pulse.done("validation")
    trainer.engine.module.train()
    return total / batches


def _validation_loss(trainer: Trainer, windows: Batches, batch: int) -> float:
    groups, layout = trainer.groups, trainer.frozen.layout
    place = Progress(step=batch, consumed_samples=batch * layout.global_batch_size)
    microbatches = windows.step_samples(
        place, layout, groups.dp.index, groups.device, trainer.frozen.run.train.validation_batches
    )
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
