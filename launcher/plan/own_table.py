"""The table beside the run directories, to which every finished run appends what it measured."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.schema import Run
from launcher.plan.own_runs import header_line, own_row, row_line
from launcher.plan.records import Layout
from launcher.plan.run_files import RunFiles

_TAIL_BYTES = 2**20
"""Of a long table only the last rows are read: some 250 runs."""


def append_run(
    files: RunFiles,
    run: Run,
    layout: Layout,
    document: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Path | None:
    """Append the run's row; the table's path, or None where nothing could be written.

    `document` is plan.json, `measured` that part of summary.json. A table whose header is another
    one (an older one, or with columns of the user's own) gets the cells that it has columns for.
    """
    row = own_row(run, layout, document, measured, files.root.name)
    path = files.table
    try:
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as table:
            table.write(header_line())
        with path.open(encoding="utf-8", newline="") as table:
            columns = next(csv.reader(table))
        # One write in append mode: rows of runs that end together do not mix.
        with path.open("a", encoding="utf-8") as table:
            table.write(row_line(row, columns))
    except (OSError, UnicodeDecodeError, csv.Error, StopIteration):
        # What cannot be written must not turn a finished run into a failed one.
        return None
    return path


def read_last_rows(path: Path) -> list[dict[str, str]]:
    """The last rows of a table of own runs, oldest first; none where it cannot be read."""
    csv.field_size_limit(_TAIL_BYTES)  # a run with measured kernels is a long cell
    try:
        with path.open("rb") as table:
            header = table.readline()
            end = table.seek(0, io.SEEK_END)
            table.seek(max(len(header), end - _TAIL_BYTES))
            if table.tell() > len(header):
                table.readline()  # a part of a row
            text = (header + table.read()).decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
