"""How far a run is, from what lies in its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from launcher.checkpoint.manifest import Malformed, read_manifest
from launcher.checkpoint.reader import list_checkpoints
from launcher.plan.run_files import RunFiles

_TAIL_BYTES = 64 * 1024


def saved_step(files: RunFiles) -> int:
    """Steps done in the newest checkpoint whose manifest can be read; 0 where there is none."""
    for name in list_checkpoints(files.checkpoints):
        try:
            return read_manifest(files.checkpoints / name).step
        except Malformed:
            continue
    return 0


def trained_steps(files: RunFiles) -> int:
    """Steps done by the newest line of metrics.jsonl; 0 where there is none."""
    for entry in reversed(_last_entries(files.metrics)):
        if "loss" in entry:
            return int(entry["step"]) + 1
    return 0


def last_sign_at(files: RunFiles) -> float | None:
    """When the run last wrote a line of metrics, in seconds since the epoch."""
    try:
        return files.metrics.stat().st_mtime
    except OSError:
        return None


def _last_entries(path: Path) -> list[dict[str, Any]]:
    """Whole lines near the end of the file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            block = stream.read()
    except OSError:
        return []
    entries = []
    for line in block.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the first is cut, the last may be torn
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries
