"""How far a run is, from the end of its metrics, and how long the rest takes."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.reader import list_checkpoints
from launcher.failure.first import log_tail
from launcher.plan.run_files import RunFiles

_RECENT = 20
"""So many of the newest steps tell how long a step takes now."""
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class StepsDone:
    """Progress of a run; None where nothing is known yet."""

    step: int = 0
    """Optimizer steps done, as far as they were logged."""
    total_steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    """Median of the newest steps."""
    last_at: float | None = None
    """When the metrics were last written; seconds since the epoch."""
    checkpoint: str | None = None
    """The newest one."""
    checkpoint_error: str | None = None
    """Why the newest attempt to save failed; None where it did not."""

    @property
    def eta_s(self) -> float | None:
        """Seconds of computing that are left, without waiting in a queue."""
        if self.total_steps is None or self.step_s is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_s


def read_steps(files: RunFiles) -> StepsDone:
    """What the newest entries of metrics.jsonl say; torn lines are left out."""
    entries = _newest_entries(files)
    steps = [entry for entry in entries if _is_step(entry)]
    saves = [entry for entry in entries if "checkpoint" in entry]
    validations = [entry for entry in entries if "validation_loss" in entry]
    last = steps[-1] if steps else {}
    saved = list_checkpoints(files.checkpoints)
    return StepsDone(
        step=last["step"] + 1 if last else 0,
        total_steps=_total_steps(files),
        loss=last.get("loss"),
        validation_loss=validations[-1]["validation_loss"] if validations else None,
        tokens_per_s=last.get("tokens_per_s"),
        step_s=statistics.median(entry["step_s"] for entry in steps[-_RECENT:]) if steps else None,
        last_at=_written_at(files),
        checkpoint=saved[0] if saved else None,
        checkpoint_error=saves[-1].get("checkpoint_error") if saves else None,
    )


def _newest_entries(files: RunFiles) -> list[dict[str, Any]]:
    entries = []
    for line in log_tail(files.metrics, _TAIL_BYTES).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The first line of the tail, or one that is being written.
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _is_step(entry: dict[str, Any]) -> bool:
    numbers = [entry.get(key) for key in ("loss", "step_s", "tokens_per_s")]
    return isinstance(entry.get("step"), int) and all(isinstance(n, (int, float)) for n in numbers)


def _total_steps(files: RunFiles) -> int | None:
    try:
        return int(json.loads(files.plan.read_text(encoding="utf-8"))["run"]["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written_at(files: RunFiles) -> float | None:
    try:
        return files.metrics.stat().st_mtime
    except OSError:
        return None
