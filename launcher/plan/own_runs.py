"""A finished run as a row of a table of measured runs, and such a row as the run that it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.config.schema import Run
from launcher.plan.backtest_cells import COLUMNS
from launcher.plan.records import Layout

SOURCE = "own runs"
"""Of every row that a finished run appends."""

RUN_COLUMN = "run_json"
"""Beside the common columns: the whole run with its hardware, so that the row needs no defaults."""

PLANNED_COLUMN = "planned_step_s"
"""What the run's own plan said: `hardware.measured_runs` learns from it."""

OWN_COLUMNS = (*COLUMNS, PLANNED_COLUMN, RUN_COLUMN)


TABLE = "measured_runs.csv"
"""Its name, beside the run directories."""


def own_row(
    run: Run, layout: Layout, plan: Mapping[str, Any], measured: Mapping[str, Any], name: str
) -> dict[str, str]:
    """The columns of `launch backtest`, from plan.json and what the run measured (summary.json)."""
    model, device = run.model, run.hardware.gpu
    cells: dict[str, Any] = {
        "id": name, "source": SOURCE, "model": model.name, "params_b": plan["parameters"] / 1e9,
        "layers": model.num_layers, "hidden": model.hidden_size, "heads": model.num_heads,
        "kv_heads": model.kv_heads, "ffn": model.ffn_hidden_size, "vocab": model.vocab_size,
        "seq": layout.sequence_length, "gpu": device.name if device else run.hardware.device,
        "gpus": layout.world_size, "gpus_per_node": layout.gpus_per_node, "tp": layout.tp,
        "pp": layout.pp, "vpp": layout.vpp, "cp": layout.cp, "ep": layout.ep, "dp": layout.dp,
        "zero_or_fsdp": f"{layout.engine}(zero{layout.zero_stage})",
        "sp": "yes" if layout.sequence_parallel else "no",
        "micro_batch": layout.micro_batch_size, "global_batch": layout.global_batch_size,
        "recompute": layout.recompute, "precision": run.precision.compute,
        "step_time_s": measured["step_s"], "mem_gib": max(measured["peak_bytes"]) / 2**30,
        "notes": f"[TM] schedule {layout.schedule}",
        PLANNED_COLUMN: plan["time"]["step_s"],
        RUN_COLUMN: json.dumps(run.model_dump(mode="json"), separators=(",", ":")),
    }  # fmt: skip
    return {column: str(cells.get(column, "")) for column in OWN_COLUMNS}


def header_line() -> str:
    """The first line of such a table."""
    return _line(OWN_COLUMNS)


def read_header(line: str) -> tuple[str, ...]:
    """The columns that a first line names; the usual ones of an empty file."""
    return tuple(next(csv.reader([line]), ())) or OWN_COLUMNS


def row_line(row: Mapping[str, str], columns: Sequence[str] = OWN_COLUMNS) -> str:
    """A row, ready to be appended."""
    return _line([row.get(column, "") for column in columns])


def _line(cells: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def read_own_run(row: Mapping[str, str | None]) -> Run | None:
    """The run of a row that carries one; None where it carries none, or one of another version."""
    text = row.get(RUN_COLUMN)
    if not text:
        return None
    try:
        return Run.model_validate_json(text)
    except ValueError:
        return None
