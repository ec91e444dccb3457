"""A table of measured runs as rows of cells, and what is wrong with it as a whole."""

from __future__ import annotations

import csv
import io

from launcher.errors import ConfigError, Finding
from launcher.plan.backtest_rows import COLUMNS

REQUIRED = ("id", "source", "layers", "hidden", "heads", "vocab", "seq", "gpu", "gpus",
            "global_batch")  # fmt: skip
"""Columns without which no row can be predicted; others may be absent, as empty cells."""


def read_table(text: str, name: str) -> list[dict[str, str | None]]:
    """The rows of a CSV; ConfigError where it is none or lacks a column that all rows need."""
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    try:
        header = [column.strip() for column in reader.fieldnames or ()]
        missing = [column for column in REQUIRED if column not in header]
        if missing:
            raise ConfigError([_missing(name, column) for column in missing])
        reader.fieldnames = header
        return [_cells(row) for row in reader]
    except csv.Error as error:
        reason = f"not a CSV table: {error}"
        raise ConfigError([Finding(field=name, rule="bad-table", reason=reason)]) from None


def _missing(name: str, column: str) -> Finding:
    return Finding(
        field=name,
        value=column,
        rule="missing-column",
        reason="the table lacks this column",
        legal=COLUMNS,
    )


def _cells(row: dict[str | None, str | None]) -> dict[str, str | None]:
    """A row with more cells than the header has is marked as broken by a cell of its own."""
    cells = {key: value for key, value in row.items() if key is not None}
    if None in row:
        cells["too many cells"] = str(row[None])
    return cells
