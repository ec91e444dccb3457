"""What finished runs on the same hardware say about a plan: how far earlier plans were.

The prediction itself stays as the model makes it. Beside it stands what it comes to when it is as
far off as the plans of the most similar earlier runs were: the median of measured over predicted,
of memory the largest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from launcher.plan.own_runs import RUN_COLUMN
from launcher.plan.own_table import read_last_rows
from launcher.plan.records import Learned, Plan

MOST_RUNS = 20
"""The newest ones: a cluster changes."""

MOST_TIMES = 1000
"""A row whose plan was further off than that says nothing: a cell of it is wrong."""

ALIKE = (
    "on this hardware",
    "on this hardware over the same axes",
    "of this model over the same axes",
    "of this very layout",
)
"""What earlier runs have in common with the plan, from the least to the most."""


class _Row(NamedTuple):
    """One earlier run on the same hardware."""

    rank: int
    """Into ALIKE."""
    step_ratio: float
    memory_ratio: float


def learn(plan: Plan, table: Path) -> Learned | None:
    """What the rows of a table say about a plan; None where none is of this hardware."""
    mine = plan.run.model_dump(mode="json")
    found = [row for cells in read_last_rows(table) if (row := _row(mine, cells)) is not None]
    if not found:
        return None
    rank = max(row.rank for row in found)
    rows = [row for row in found if row.rank == rank][-MOST_RUNS:]
    steps = [row.step_ratio for row in rows]
    step_ratio, memory_ratio = median(steps), max(row.memory_ratio for row in rows)
    return Learned(
        table=str(table),
        runs=len(rows),
        alike=ALIKE[rank],
        step_ratio=step_ratio,
        step_ratio_range=(min(steps), max(steps)),
        memory_ratio=memory_ratio,
        step_s=plan.time.step_s * step_ratio,
        tokens_per_s=plan.time.tokens_per_s / step_ratio,
        peak_bytes=round(plan.memory.peak_bytes * memory_ratio),
    )


def _row(mine: Mapping[str, Any], cells: Mapping[str, str]) -> _Row | None:
    """None for a row of other hardware, of another program, and for one that cannot be read."""
    try:
        earlier = json.loads(cells[RUN_COLUMN])
        step = _ratio(cells["step_time_s"], cells["predicted_step_s"])
        memory = _ratio(cells["mem_gib"], cells["predicted_mem_gib"])
        if _hardware(earlier) != _hardware(mine):
            return None
        return _Row(_rank(earlier, mine), step, memory)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        return None


def _ratio(measured: str, predicted: str) -> float:
    """Raises ValueError where either is no positive number, or where they are worlds apart."""
    ratio = float(measured) / float(predicted)
    if not 1 / MOST_TIMES < ratio < MOST_TIMES:
        raise ValueError(ratio)
    return ratio


def _hardware(run: Mapping[str, Any]) -> Sequence[Any]:
    """What must be the same: the device and what joins devices, and how its kernels are known.

    A CPU's share of memory and peak differs with the number of processes, so names are compared.
    """
    hardware = run["hardware"]
    gpu, network = hardware["gpu"], hardware["network"]
    return (
        hardware["device"],
        gpu["name"].partition(" / ")[0],
        hardware["node"]["name"],
        network["name"] if network and hardware["num_nodes"] > 1 else None,
        bool(gpu["kernels"]),
    )


def _rank(earlier: Mapping[str, Any], mine: Mapping[str, Any]) -> int:
    if _axes(earlier) != _axes(mine):
        return 0
    if earlier["model"] != mine["model"] or earlier["precision"] != mine["precision"]:
        return 1
    return 3 if _layout(earlier) == _layout(mine) else 2


def _axes(run: Mapping[str, Any]) -> Sequence[Any]:
    """Over which axes the run is cut, and by what it is sharded."""
    degrees = run["parallelism"]
    cut = [degrees[axis] > 1 for axis in ("tp", "cp", "ep", "pp", "dp")]
    return (*cut, degrees["engine"], degrees["zero_stage"] == 3, run["hardware"]["num_nodes"] > 1)


def _layout(run: Mapping[str, Any]) -> Sequence[Any]:
    """Everything that decides on the time of a step, apart from model and hardware."""
    train = run["train"]
    batch = [train[key] for key in ("sequence_length", "micro_batch_size", "num_microbatches")]
    degrees = {**run["parallelism"], "name": None}
    return degrees, batch, train["compile"], run["hardware"]["num_nodes"]
