"""What this cluster has taught: how many times as long as planned finished runs took on it.

`launch` appends every finished run to `measured_runs.csv` beside its run directory;
`hardware.measured_runs=FILE` reads that table once, when the run is composed, and run.yaml carries
what came out as `hardware.slowdown`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from launcher.errors import Finding

LATEST = 8
"""Runs on these devices that count, the last ones of the table: clusters change."""


def with_measured_runs(values: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Composed values with `hardware.slowdown` where a table is named and no number is."""
    hardware = values.get("hardware")
    if not isinstance(hardware, dict) or not hardware.get("measured_runs"):
        return values, []
    gpu = hardware.get("gpu")
    if not isinstance(gpu, dict) or hardware.get("slowdown") is not None:
        return values, []
    name = str(hardware["measured_runs"])
    try:
        slowdown = _slowdown(Path(name).expanduser(), gpu)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "hardware.measured_runs=null"
        return values, [
            Finding(
                field="hardware.measured_runs", value=name, rule="measured-runs-usable",
                reason=f"nothing can be learned from it: {reason}", fix=fix,
            )
        ]  # fmt: skip
    return values | {"hardware": hardware | {"slowdown": slowdown}}, []


def _slowdown(path: Path, gpu: dict[str, Any]) -> float:
    """The median of the latest runs: one run beside a busy neighbour teaches little."""
    import csv  # only where a table is named

    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**24)))
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = [ratio for row in rows if (ratio := _ratio(row, gpu)) is not None]
    if not found:
        others = sorted({row["gpu"] for row in rows if row.get("gpu")})
        there = f"its runs are on {', '.join(others)}" if others else "it has no runs"
        if gpu.get("name") in others:
            there = (
                f"those on it planned {'without' if gpu.get('kernels') else 'with'} such a table"
            )
        kind = "with" if gpu.get("kernels") else "without"
        wanted = f"no finished run on {gpu.get('name')} {kind} measured kernels"
        raise ValueError(f"{wanted}; {there}")
    return float(f"{statistics.median(found[-LATEST:]):.4g}")


def _ratio(row: dict[str, str | None], gpu: dict[str, Any]) -> float | None:
    """Of a row that a run on such devices appended; its own plan may have learned before.

    Plans with and without measured kernels are off by different factors.
    """
    try:
        hardware = json.loads(row.get("run_json") or "{}")["hardware"]
        device, before = hardware["gpu"], hardware.get("slowdown") or 1.0
        is_alike = device["name"] == gpu.get("name")
        is_alike = is_alike and bool(device.get("kernels")) == bool(gpu.get("kernels"))
        ratio = before * float(row["step_time_s"] or "") / float(row["planned_step_s"] or "")
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    return ratio if is_alike and 0 < ratio < math.inf else None
