"""What a run measures of itself: metrics.jsonl on the way, summary.json at its end."""

from __future__ import annotations

import json
import os
import resource
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.plan.mesh import build_mesh
from launcher.plan.own_table import append_run
from launcher.plan.records import Layout
from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer
from launcher.runtime.checkpoint.restore import Start
from launcher.runtime.checkpoint.say import say
from launcher.runtime.tracker import GuardedTracker, open_tracker

_ENOUGH_STEPS = 10
"""Logged steps of which a median is worth having."""


class MetricsLog:
    """Appends one JSON object per logged step; only rank 0 writes and remembers.

    A run that continues keeps the lines of the steps that it had done at its start, and no others:
    every step is there once, and a summary covers the whole run.
    """

    def __init__(self, files: RunFiles, trainer: Trainer, start: Start) -> None:
        layout, path = trainer.frozen.layout, files.metrics
        self._tokens_per_step = layout.global_batch_size * layout.sequence_length
        self._path = path if trainer.groups.rank == 0 else None
        self._unwritten: list[str] = []
        self._step_times: list[float] = []
        self._num_earlier = 0
        self.last: dict[str, Any] = {}
        self.validation_loss: float | None = None
        self._tracker: GuardedTracker | None = None
        if self._path is not None:
            self._tracker = open_tracker(trainer.frozen.run, files, start.progress.step)
            for entry in keep_before(self._path, start.progress.step):
                self._remember(entry)
            self._num_earlier = len(self._step_times)
            if start.name is not None:
                self.add_event({"step": start.progress.step - 1, "resumed_from": start.name})

    def add(self, entry: dict[str, Any], elapsed_s: float) -> None:
        """Log one step."""
        speed = {"step_s": elapsed_s, "tokens_per_s": self._tokens_per_step / elapsed_s}
        self._remember(entry | speed)
        self.add_event(entry | speed)

    def add_validation(self, step: int, loss: float) -> None:
        """Log a validation."""
        self._remember({"step": step, "validation_loss": loss})
        self.add_event({"step": step, "validation_loss": loss})

    def add_event(self, entry: dict[str, Any]) -> None:
        """Log something else that happened; on a full disk, later."""
        if self._path is None or self._tracker is None:
            return
        self._tracker.add(entry)
        self._unwritten.append(json.dumps(entry) + "\n")
        try:
            append_lines(self._path, self._unwritten)
        except OSError as error:
            if len(self._unwritten) == 1:  # once, not for every line that waits
                say(f"metrics.jsonl cannot be written now ({error.strerror}); training goes on")
            return
        self._unwritten = []

    @property
    def step_times(self) -> list[float]:
        """Seconds of the logged steps that say how fast this layout is.

        Earlier starts may have had another one: they count where this one is too short.
        """
        return typical_times(self._step_times[self._num_earlier :], self._step_times)

    def close(self) -> None:
        """Nothing more will be logged."""
        if self._tracker is not None:
            self._tracker.close()

    def _remember(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self._step_times.append(entry["step_s"])
            self.last = entry
        if "validation_loss" in entry:
            self.validation_loss = entry["validation_loss"]


def typical_times(own: Sequence[float], whole: Sequence[float]) -> list[float]:
    """Of a start's own steps if they are enough, else of the whole run, without the first ones.

    Those pay for compilation, memory and caches.
    """
    times = own if len(own) >= _ENOUGH_STEPS else whole
    return list(times[len(times) // 10 :])


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """All of the lines or, where that fails, none: OSError then."""
    with path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        content = memoryview("".join(lines).encode())
        try:
            while len(content):
                content = content[stream.write(content) :]
        except OSError:
            stream.truncate(before)
            raise


def keep_before(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut metrics.jsonl where this step, or a torn line, begins; the entries that remain."""
    if not path.exists():
        return []
    kept, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or entry["step"] >= step:
            break
        kept.append(entry)
        size += len(line)
    os.truncate(path, size)
    return kept


def write_summary(files: RunFiles, trainer: Trainer, log: MetricsLog, num_steps: int) -> None:
    """Predicted beside measured; every rank must call it, rank 0 writes.

    A finished run also goes into the table beside its directory, from which later plans learn.
    `num_steps` were done when the run ended; fewer than were wanted mean that it was stopped.
    """
    peaks = _gather_peaks(trainer)
    if trainer.groups.rank != 0:
        return
    plan, layout = trainer.frozen.plan, trainer.frozen.layout
    predicted = plan["time"]
    times = log.step_times
    mesh = build_mesh(layout)
    totals = [stage["total_bytes"] for stage in plan["memory"]["per_stage"]]
    document: dict[str, Any] = {
        "outcome": {
            "status": "done" if num_steps >= trainer.frozen.run.train.steps else "stopped",
            "steps": num_steps,
            "loss": log.last.get("loss"),
            "validation_loss": log.validation_loss,
        },
        "predicted": {
            **{key: predicted[key] for key in ("step_s", "tokens_per_s", "mfu")},
            "peak_bytes": [
                totals[mesh.coordinates(rank)["pp"]] for rank in range(layout.world_size)
            ],
        },
        "measured": {
            **_speed(layout, predicted, statistics.median(times) if times else None),
            "peak_bytes": peaks,
        },
    }
    if plan.get("learned"):
        document["predicted"]["learned_step_s"] = plan["learned"]["step_s"]
    partial = files.summary.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(files.summary)
    measured = document["measured"]
    if document["outcome"]["status"] == "done" and measured["step_s"] is not None:
        append_run(files, trainer.frozen.run, layout, plan, measured)


def _speed(layout: Layout, predicted: dict[str, Any], step_s: float | None) -> dict[str, Any]:
    """None throughout for a run that was stopped before it logged a step."""
    if step_s is None:
        return {"step_s": None, "tokens_per_s": None, "mfu": None}
    return {
        "step_s": step_s,
        "tokens_per_s": layout.global_batch_size * layout.sequence_length / step_s,
        "mfu": predicted["mfu"] * predicted["step_s"] / step_s,
    }


def _gather_peaks(trainer: Trainer) -> list[int]:
    """Peak memory of every rank, by rank: reserved device memory, or resident memory on a CPU."""
    device = trainer.groups.device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    mine = torch.tensor([peak], dtype=torch.int64, device=device)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [int(mine)]
    everyone = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return [int(peak) for peak in everyone]
