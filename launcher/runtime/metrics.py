"""What a run measures of itself: metrics.jsonl on the way, summary.json at its end."""

from __future__ import annotations

import json
import resource
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.plan.mesh import build_mesh
from launcher.plan.run_files import RunFiles
from launcher.runtime.build import Trainer


class MetricsLog:
    """Appends one JSON object per logged step; rank 0 writes, the others only remember."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        layout = trainer.frozen.layout
        self._tokens_per_step = layout.global_batch_size * layout.sequence_length
        self._stream = path.open("a", buffering=1) if trainer.groups.rank == 0 else None
        self._pending: dict[str, Any] | None = None
        self.step_times: list[float] = []
        self.last: dict[str, Any] = {}
        self.validation_loss: float | None = None

    def add(self, entry: dict[str, Any], elapsed_s: float) -> None:
        """Log one step."""
        self.step_times.append(elapsed_s)
        self.last = {
            **entry,
            "step_s": elapsed_s,
            "tokens_per_s": self._tokens_per_step / elapsed_s,
        }
        self._write(self.last)

    def add_validation(self, step: int, loss: float) -> None:
        """Log a validation."""
        self.validation_loss = loss
        self._write({"step": step, "validation_loss": loss})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write(json.dumps(entry) + "\n")


def write_summary(files: RunFiles, trainer: Trainer, log: MetricsLog) -> None:
    """Predicted beside measured; every rank must call it, rank 0 writes."""
    peaks = _gather_peaks(trainer)
    if trainer.groups.rank != 0:
        return
    plan, layout = trainer.frozen.plan, trainer.frozen.layout
    predicted = plan["time"]
    # The first steps pay for compilation, memory and caches; the median ignores the rest.
    step_s = statistics.median(log.step_times[len(log.step_times) // 10 :])
    mesh = build_mesh(layout)
    totals = [stage["total_bytes"] for stage in plan["memory"]["per_stage"]]
    document = {
        "outcome": {
            "status": "done",
            "steps": log.last["step"] + 1,
            "loss": log.last["loss"],
            "validation_loss": log.validation_loss,
        },
        "predicted": {
            **{key: predicted[key] for key in ("step_s", "tokens_per_s", "mfu")},
            "peak_bytes": [
                totals[mesh.coordinates(rank)["pp"]] for rank in range(layout.world_size)
            ],
        },
        "measured": {
            "step_s": step_s,
            "tokens_per_s": layout.global_batch_size * layout.sequence_length / step_s,
            "mfu": predicted["mfu"] * predicted["step_s"] / step_s,
            "peak_bytes": peaks,
        },
    }
    partial = files.summary.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(files.summary)


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
