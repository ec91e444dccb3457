"""When the state is saved, what the run hears of it, and when the run ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.config.schema import Checkpoint
from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.restore import Start
from launcher.runtime.checkpoint.saver import Outcome, Saver, Target
from launcher.runtime.checkpoint.say import say
from launcher.runtime.checkpoint.snapshot import Arena
from launcher.runtime.control import Control
from launcher.runtime.progress import Progress
from launcher.runtime.pulse import Pulse


class Keeper:
    """Saves by the policy of a run; every rank has one and calls it after every step."""

    def __init__(
        self,
        policy: Checkpoint,
        saver: Saver,
        control: Control,
        start: Start,
        sequence_length: int,
        note: Callable[[dict[str, Any]], None],
        pulse: Pulse,
    ) -> None:
        """`note` puts an entry into metrics.jsonl."""
        self._pulse = pulse
        self._policy, self._saver, self._control, self._note = policy, saver, control, note
        self._start, self._sequence_length = start, sequence_length
        self._last_error: str | None = None
        self._is_rank_0 = saver.is_rank_0

    def after_step(self, progress: Progress, is_last: bool) -> bool:
        """Save if it is time to; whether the run is asked to end here."""
        wish = self._control.agree(is_last)
        every = self._policy.every_steps
        due = every is not None and progress.step % every == 0
        if wish.save or (self._policy.is_on and (due or is_last or wish.stop)):
            self._save(progress)
        self._report()
        return wish.stop and not is_last

    def close(self) -> None:
        """Wait for the last save; RunFailed where it is the newest state and was not written."""
        with self._pulse.saving():
            self._saver.wait()
        self._report()
        if self._last_error is not None:
            raise RunFailed(f"the last checkpoint was not written: {self._last_error}")

    def _save(self, progress: Progress) -> None:
        if progress.step == self._saver.last_step:
            return
        new_samples = progress.consumed_samples - self._start.progress.consumed_samples
        tokens = self._start.consumed_tokens + new_samples * self._sequence_length
        with self._pulse.saving():
            self._saver.save(progress, tokens)
        self._control.saved()

    def _report(self) -> None:
        for outcome in self._saver.outcomes():
            self._last_error = outcome.error
            if not self._is_rank_0:
                continue
            say(_sentence(outcome))
            # Steps are counted from 0 in metrics.jsonl: the save came after this one.
            entry: dict[str, Any] = {"step": outcome.step - 1, "checkpoint": outcome.name}
            if outcome.error is not None:
                entry["checkpoint_error"] = outcome.error
            seconds = {"stall_s": outcome.stall_s, "checkpoint_s": outcome.seconds}
            self._note(entry | seconds | {"checkpoint_bytes": outcome.num_bytes})


def build_keeper(
    trainer: Trainer,
    files: RunFiles,
    start: Start,
    board: Board,
    note: Callable[[dict[str, Any]], None],
    pulse: Pulse,
) -> Keeper:
    """What a run's ranks save with; every rank must call it."""
    run, layout, groups = trainer.frozen.run, trainer.frozen.layout, trainer.groups
    minutes = run.checkpoint.every_minutes
    control = Control(
        groups.device,
        groups.rank,
        groups.world_size,
        request=files.save_request,
        every_s=None if minutes is None else 60.0 * minutes,
    )
    control.listen()
    target = Target(files=files, run=run, layout=layout, engine=trainer.engine)
    saver = Saver(target, board, Arena(groups.device), start)
    if run.checkpoint.is_on:
        saver.prepare()
    return Keeper(run.checkpoint, saver, control, start, layout.sequence_length, note, pulse)


def _sentence(outcome: Outcome) -> str:
    if outcome.error is not None:
        return (
            f"the checkpoint of step {outcome.step} was not written: {outcome.error}; "
            "training goes on, and earlier checkpoints are as they were"
        )
    rate = outcome.num_bytes / max(outcome.seconds, 1e-9) / 1e6
    return (
        f"checkpoint {outcome.name}: {outcome.num_bytes / 1e6:,.1f} MB in {outcome.seconds:.2f} s "
        f"({rate:,.0f} MB/s), training stood still for {1e3 * outcome.stall_s:.0f} ms"
    )
