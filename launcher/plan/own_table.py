"""The table beside the run directories, to which every finished run appends what it measured."""

from __future__ import annotations

import csv
import fcntl
import io
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from launcher.config.schema import Run
from launcher.plan.own_runs import OWN_COLUMNS, header_line, own_row, row_line
from launcher.plan.records import Layout
from launcher.plan.run_files import RunFiles

_TAIL_BYTES = 2**20
"""Of a long table only the last rows are read: some 250 runs. No header and no row is longer."""

_PATIENCE = 20
"""Tenths of a second that a finished run waits for others to append their rows."""


def append_run(
    files: RunFiles,
    run: Run,
    layout: Layout,
    document: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Path | None:
    """Append the run's row; the table's path, or None where nothing was written.

    `document` is plan.json, `measured` that part of summary.json. A table whose header is another
    one (an older one, or with columns of the user's own) gets the cells that it has columns for;
    a file that has none of them is somebody else's and stays as it is.
    """
    row = own_row(run, layout, document, measured, files.root.name)
    try:
        with files.table.open("a+b") as table:
            _wait_for_others(table)
            if (lines := _lines_for(table, row)) is None:
                return None
            # A folder's name need not be text in UTF-8.
            table.write(lines.encode(errors="backslashreplace"))
    except (OSError, ValueError, csv.Error):
        # What cannot be written must not turn a finished run into a failed one.
        return None
    return files.table


def _wait_for_others(table: BinaryIO) -> None:
    """Rows of runs that end together must not mix, nor two of them begin the table."""
    for _ in range(_PATIENCE):
        try:
            fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return
        else:
            return


def _lines_for(table: BinaryIO, row: Mapping[str, str]) -> str | None:
    """What to append for a row; None where the file is no such table."""
    end = table.seek(0, io.SEEK_END)
    if end == 0:
        return header_line() + row_line(row)
    table.seek(0)
    columns = _cells(table.readline(_TAIL_BYTES).decode("utf-8-sig"))
    if not {*columns} & {*OWN_COLUMNS}:
        return None
    table.seek(end - 1)
    torn = "" if table.read(1) == b"\n" else "\n"  # of a full disk, or of an editor
    return torn + row_line(row, columns)


def has_row(files: RunFiles) -> bool:
    """Whether a run is among the last ones of the table beside it."""
    return any(row.get("id") == files.root.name for row in read_last_rows(files.table))


def read_last_rows(path: Path) -> list[dict[str, str]]:
    """The last rows of a table of own runs, oldest first; none where it cannot be read."""
    try:
        with path.open("rb") as table:
            header = table.readline(_TAIL_BYTES)
            end = table.seek(0, io.SEEK_END)
            table.seek(max(len(header), end - _TAIL_BYTES))
            if table.tell() > len(header):
                table.readline(_TAIL_BYTES)  # a part of a row
            columns, text = _cells(header.decode("utf-8-sig")), table.read(_TAIL_BYTES).decode()
        return list(_rows(columns, text))
    except (OSError, ValueError, csv.Error):
        return []


def _rows(columns: list[str], text: str) -> Iterator[dict[str, str]]:
    """Line by line: a row that was torn, with a quote left open, takes no other one along."""
    for line in io.StringIO(text, newline=""):
        try:
            yield dict(zip(columns, _cells(line), strict=False))
        except csv.Error:
            continue


def _cells(line: str) -> list[str]:
    usual = csv.field_size_limit(_TAIL_BYTES)  # a run with measured kernels is a long cell
    try:
        return next(csv.reader([line]), [])
    finally:
        csv.field_size_limit(usual)
