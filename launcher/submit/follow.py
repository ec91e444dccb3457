"""Shows a running job: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class MetricsTail:
    """Reads the lines that were added to metrics.jsonl since the last look."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        """`first_step` is where a resumed run goes on: what is there already is not new."""
        self._path = path
        self._offset = path.stat().st_size if first_step and path.exists() else 0

    def new_entries(self) -> list[dict[str, Any]]:
        """Complete lines only; a line that is still being written is read at the next look."""
        try:
            with self._path.open("rb") as stream:
                # A job that goes on from an older checkpoint than expected cuts the file.
                self._offset = min(self._offset, stream.seek(0, os.SEEK_END))
                stream.seek(self._offset)
                block = stream.read()
        except FileNotFoundError:
            return []
        complete = block[: block.rfind(b"\n") + 1]
        self._offset += len(complete)
        return list(_entries(complete))


def _entries(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


class Progress:
    """Progress of one run; `update` with metric entries, `close` at the end."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self._total = total_steps
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._first_step: tuple[int, float] | None = None
        self._printed = 0
        self._bar = self._open_bar() if self._stream.isatty() else None

    def update(self, entries: list[dict[str, Any]]) -> None:
        """Show the newest of the entries."""
        for entry in entries:
            if "checkpoint_error" in entry:
                self.say(
                    f"the checkpoint after step {entry['step'] + 1} was not written: "
                    f"{entry['checkpoint_error']}; training goes on"
                )
            if "loss" not in entry:
                continue
            text = describe(entry)
            if self._bar is not None:
                self._bar.update(0, completed=entry["step"] + 1, text=text)
            elif self._is_due(entry["step"]):
                print(self._plain_line(entry, text), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _open_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
        )
        bar.start()
        bar.add_task("train", total=self._total, text="starting workers")
        return bar

    def _is_due(self, step: int) -> bool:
        """Some twenty lines per run, the first and the last step among them."""
        due = step in (0, self._total - 1) or (step + 1) % max(1, self._total // 20) == 0
        return due and step >= self._printed

    def _plain_line(self, entry: dict[str, Any], text: str) -> str:
        self._printed = entry["step"] + 1
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = (entry["step"], now)
        done = entry["step"] - self._first_step[0]
        left = (self._total - 1 - entry["step"]) * (now - self._first_step[1]) / max(1, done)
        eta = f"{int(left // 60)}:{int(left % 60):02d}" if done else "-"
        return f"step {entry['step'] + 1:>{len(str(self._total))}}/{self._total}  {text}  ETA {eta}"


def describe(entry: dict[str, Any]) -> str:
    """One metric entry as people read it."""
    return (
        f"loss {entry['loss']:.4f}  grad norm {entry['grad_norm']:.3f}  "
        f"lr {entry['learning_rate']:.2e}  {entry['tokens_per_s']:,.0f} tokens/s"
        + (f"  validation {entry['validation_loss']:.4f}" if "validation_loss" in entry else "")
    )
