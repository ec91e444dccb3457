"""Every finished run appends what it measured to a table beside its run directory."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from launcher.plan.own_runs import TABLE, header_line, own_row, read_header, row_line
from launcher.plan.run_files import RunFiles
from launcher.runtime.frozen import Frozen


def append_run(files: RunFiles, frozen: Frozen) -> Path | None:
    """Append the run's row; None where there is none: it was stopped, or nothing can be written.

    Rank 0 does it, so that it is done however the job was started.
    """
    summary = json.loads(files.summary.read_text(encoding="utf-8"))
    if summary["outcome"]["status"] != "done" or summary["measured"]["step_s"] is None:
        return None
    row = own_row(frozen.run, frozen.layout, frozen.plan, summary["measured"], files.root.name)
    path = files.root.parent / TABLE
    try:
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as table:
            table.write(header_line())
        with path.open(encoding="utf-8") as table:  # of an earlier version it has other columns
            columns = read_header(table.readline())
        # One write in append mode: rows of runs that end together do not mix.
        with path.open("a", encoding="utf-8") as table:
            table.write(row_line(row, columns))
    except (
        OSError
    ):  # A folder that cannot be written must not turn a finished run into a failed one.
        return None
    return path
