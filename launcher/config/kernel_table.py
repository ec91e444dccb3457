"""A table of measured kernels is read once, when the run is composed: run.yaml carries its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

from launcher.config.hardware_schema import ExchangeKind, KernelKind, MatmulType
from launcher.config.local_hardware import THREADS_SHARE
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
        peak_flops = float(gpu["peak_flops"]["fp32"])
        rows = read_kernels(Path(name).expanduser(), peak_flops, hardware.get("device") == "cpu")
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


def read_kernels(path: Path, peak_flops: float, is_cpu: bool) -> list[dict[str, Any]]:
    """Rows for a process whose share of a CPU has this peak, or for a GPU.

    ValueError with the line and the cell of what is wrong, OSError.
    """
    import csv  # only where a table is named

    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise ValueError(f"no column {', '.join(missing)}")
        try:
            lines = [(number, _whole(row, number)) for number, row in enumerate(reader, 2)]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None
    for number, row in lines:
        if row["device"].lower().startswith("cpu") != is_cpu:
            kind = "CPU" if is_cpu else "GPU"
            raise ValueError(f"line {number}: device={row['device']} is no {kind}")
    if not 0 < len(lines) <= LIMIT_ROWS:
        raise ValueError(f"{len(lines)} rows; 1 to {LIMIT_ROWS} can be used")
    # The kernels are of one core; ranks that outnumbered the cores had less of one.
    core = max(_positive(row, "peak_flops_fp32", number) for number, row in lines)
    return [_row(row, number, peak_flops if is_cpu else None, core) for number, row in lines]


def _whole(row: dict[str, str | None], number: int) -> dict[str, str]:
    cells = {column: (row[column] or "").strip() for column in COLUMNS}
    if empty := [column for column, cell in cells.items() if not cell]:
        raise ValueError(f"line {number}: no {', '.join(empty)}")
    return cells


def _row(row: dict[str, str], number: int, mine: float | None, core: float) -> dict[str, Any]:
    """`mine`: peak of what a process has of a CPU; None: a device of its own.

    Processes that share a core take as much longer; several cores are quicker at kernels only.
    """
    is_kernel, is_exchange = (row["kind"] in get_args(k) for k in (KernelKind, ExchangeKind))
    if not (is_kernel or is_exchange) or row["type"] not in get_args(MatmulType):
        raise ValueError(f"line {number}: kind={row['kind']} type={row['type']}")
    measured, peak = (_positive(row, column, number) for column in ("seconds", "peak_flops_fp32"))
    sizes = {axis: _positive(row, axis, number) for axis in ("m", "n", "k")}
    if fraction := [axis for axis, size in sizes.items() if size != int(size)]:
        raise ValueError(f"line {number}: {fraction[0]}={row[fraction[0]]} is not a whole number")
    if is_exchange and sizes["n"] < 2:
        raise ValueError(f"line {number}: n={row['n']}: an exchange is between 2 ranks or more")
    if mine is not None and is_kernel:
        measured *= peak / mine if mine <= peak else min(1.0, peak / mine / THREADS_SHARE)
    elif mine is not None:
        measured *= peak / min(mine, core)
    return {"kind": row["kind"], "type": row["type"], "seconds": measured} | {
        axis: int(size) for axis, size in sizes.items()
    }


def _positive(row: dict[str, str], column: str, number: int) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"line {number}: {column}={row[column]} is not a positive number")
    return value
