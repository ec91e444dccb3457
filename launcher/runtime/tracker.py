"""The tracker that a run also tells its metrics: TensorBoard or Weights & Biases, by rank 0.

A run keeps one name with its tracker in tracker_id, so that a start after preemption, a fault or
`launch resume` goes on with the same curves. A tracker never ends or delays the training: what
it cannot do is said once in the log, and metrics.jsonl has everything.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from launcher.config.schema import Run
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.say import say

INIT_TIMEOUT_S = 60
"""What the network may take until training goes on without Weights & Biases."""


class Tracker(Protocol):
    """Takes numbers of a step; any of its calls may raise."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, counted from 0."""

    def close(self) -> None:
        """Hand in what still waits."""


class TensorBoard:
    """Event files in RUN/tensorboard; steps that are done again replace their first try."""

    def __init__(self, files: RunFiles, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Untyped upstream.
        self._writer: Any = SummaryWriter(str(files.tensorboard), purge_step=first_step)  # type: ignore[no-untyped-call]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point per value, with the system at once: a killed process keeps none to itself."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the same id at every start; account and server come from WANDB_* variables."""

    def __init__(self, run: Run, files: RunFiles, run_id: str) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=run.train.tracker_project, id=run_id, resume="allow", name=files.root.name,
            dir=str(files.root), config=_facts(run),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off"),
        )  # fmt: skip
        # A step that is done again after a fault has a place of its own in wandb's count.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One line of wandb's history; a thread of its own sends it."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


class GuardedTracker:
    """A tracker, or none, whose faults are said once and end nothing but the tracker."""

    def __init__(self, name: str | None, open_it: Callable[[], Tracker | None]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._tracker = self._try(open_it)

    def add(self, entry: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: its numbers at its step."""
        tracker = self._tracker
        values = {
            key: float(value)
            for key, value in entry.items()
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if tracker is not None and values:
            self._try(lambda: tracker.add(entry["step"], values))

    def close(self) -> None:
        """Hand in what still waits."""
        if self._tracker is not None:
            self._try(self._tracker.close)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # Trackers raise errors of their own, of the network and of the disk alike.
        except Exception as error:
            self._tracker = None
            say(f"{self._name} is not told any more ({error}); metrics.jsonl is, and it goes on")
            return None


def open_tracker(run: Run, files: RunFiles, first_step: int) -> GuardedTracker:
    """For rank 0, at every start; steps from `first_step` on are told (again)."""
    name = run.train.tracker

    def opened() -> Tracker | None:
        if name == "tensorboard":
            return TensorBoard(files, first_step)
        if name == "wandb":
            return WeightsAndBiases(run, files, run_id_of(files))
        return None

    return GuardedTracker(name, opened)


def run_id_of(files: RunFiles) -> str:
    """The run's name with its tracker: made at the first start, kept for all others."""
    if not files.tracker.exists():
        partial = files.tracker.with_name(f".{files.tracker.name}.{os.getpid()}")
        partial.write_text(f"{uuid.uuid4().hex[:12]}\n", encoding="ascii")
        partial.replace(files.tracker)
    return files.tracker.read_text(encoding="ascii").strip()


def _facts(run: Run) -> dict[str, Any]:
    """The run's own keys; what is about the site stays here."""
    return {key: value for key, value in run.model_dump(mode="json").items() if key != "launch"}
