"""A table of measured runs as rows of cells, and what is wrong with it as a whole."""

from __future__ import annotations

import csv
import io

from launcher.errors import ConfigError, Finding
from launcher.plan.backtest_cells import COLUMNS, column_name, column_unit

REQUIRED = ("gpu", "gpus")
"""Columns without which no row can be predicted; others may be absent, as empty cells."""


def read_table(text: str, name: str) -> list[dict[str, str | None]]:
    """The rows of a CSV; ConfigError where it is none or lacks a column that all rows need.

    Blank rows are none; a column that means the same as an earlier one is left out.
    """
    text = text.lstrip("\ufeff")
    header_line = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        numbered = [(reader.line_num, line) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        reason = f"not a CSV table: {error}"
        raise ConfigError([Finding(field=name, rule="bad-table", reason=reason)]) from None
    lines = [line for _, line in numbered]
    header = [column_name(cell) for cell in lines[0]] if lines else []
    if missing := [column for column in REQUIRED if column not in header]:
        raise ConfigError([_missing(name, column) for column in missing])
    units = [column_unit(cell) for cell in lines[0]]
    return [
        _cells(header, units, line, number) | {LINE: str(at)}
        for number, (at, line) in enumerate(numbered[1:], 2)
    ]


LINE = "line of the file"
"""A cell that says where the row ends."""


def _missing(name: str, column: str) -> Finding:
    return Finding(
        field=name,
        value=column,
        rule="missing-column",
        reason="the table lacks this column",
        legal=COLUMNS,
    )


def _cells(
    header: list[str], units: list[str], line: list[str], number: int
) -> dict[str, str | None]:
    """A row with more cells than the header has is marked as broken by a cell of its own."""
    cells: dict[str, str | None] = {}
    for column, unit, cell in zip(header, units, line, strict=False):
        has_unit = not unit or not cell.strip() or cell.strip()[-1].isalpha()
        cells.setdefault(column, cell if has_unit else f"{cell} {unit}")
    if len(line) > len(header) and any(cell.strip() for cell in line[len(header) :]):
        cells["too many cells"] = ",".join(line[len(header) :])
    if not (cells.get("id") or "").strip():
        cells["id"] = f"row {number}"
    return cells
