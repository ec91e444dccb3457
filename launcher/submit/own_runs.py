"""Every finished run appends what it measured to a table beside its run directory."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles

TABLE = "measured_runs.csv"


def append_run(files: RunFiles, plan: Plan) -> Path | None:
    """Append the run's row; the table's path, or None where nothing could be written."""
    document = json.loads(files.summary.read_text(encoding="utf-8"))
    row = own_row(plan, document["measured"], files.root.name)
    path = files.root.parent / TABLE
    try:
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as table:
            table.write(header_line())
        # One write in append mode: rows of runs that end together do not mix.
        with path.open("a", encoding="utf-8") as table:
            table.write(row_line(row))
    except OSError:
        return (
            None  # A folder that cannot be written must not turn a finished run into a failed one.
        )
    return path
