"""A table of measured kernels is read once, when the run is composed: run.yaml carries its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

from launcher.config.hardware_schema import KernelKind, MatmulType
from launcher.errors import Finding

COLUMNS = ("device", "peak_flops_fp32", "kind", "type", "m", "n", "k", "seconds")
"""device and its peak say on what was measured; m, n, k are the kernel's size."""

LIMIT_ROWS = 2000


def with_kernels(values: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Composed values with the rows of `hardware.kernels` under `hardware.gpu`."""
    hardware = values.get("hardware")
    if not isinstance(hardware, dict) or not hardware.get("kernels"):
        return values, []
    name, gpu = str(hardware["kernels"]), hardware.get("gpu")
    if not isinstance(gpu, dict):
        return values, []
    if gpu.get("kernels"):
        return values, []
    try:
        rows = _read(Path(name).expanduser(), float(gpu["peak_flops"]["fp32"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return values, [
            Finding(
                field="hardware.kernels",
                value=name,
                rule="kernel-table-readable",
                reason=f"not a table of measured kernels: {reason}",
                fix="a file that `launch calibrate FILE` wrote",
            )
        ]
    return values | {"hardware": hardware | {"gpu": gpu | {"kernels": rows}}}, []


def _read(path: Path, peak_flops: float) -> list[dict[str, Any]]:
    import csv  # only where a table is named

    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise ValueError(f"no column {', '.join(missing)}")
        rows = [_row(row, number, peak_flops) for number, row in enumerate(reader, 2)]
    if not 0 < len(rows) <= LIMIT_ROWS:
        raise ValueError(f"{len(rows)} rows; 1 to {LIMIT_ROWS} can be used")
    return rows


def _row(row: dict[str, str], number: int, peak_flops: float) -> dict[str, Any]:
    """Processes that share a CPU have a part of its peak, and take as much longer."""
    if row["kind"] not in get_args(KernelKind) or row["type"] not in get_args(MatmulType):
        raise ValueError(f"line {number}: kind={row['kind']} type={row['type']}")
    measured, peak = float(row["seconds"]), float(row["peak_flops_fp32"])
    sizes = {axis: int(row[axis]) for axis in ("m", "n", "k")}
    if not (0 < measured < math.inf and 0 < peak < math.inf and min(sizes.values()) > 0):
        raise ValueError(f"line {number}: not a positive number")
    scaled = measured * max(1.0, peak / peak_flops)
    return {"kind": row["kind"], "type": row["type"], **sizes, "seconds": scaled}
