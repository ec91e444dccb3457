"""A table of measured runs as rows of cells, and what is wrong with it as a whole."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import ConfigError, Finding
from launcher.plan.backtest_cells import COLUMNS, column_name, column_unit
from launcher.plan.backtest_odd import MEASURED
from launcher.plan.own_runs import OWN_COLUMNS

REQUIRED = ("gpu", "gpus")
"""Columns without which no row can be predicted; others may be absent, as empty cells."""


def read_table(text: str, name: str) -> list[dict[str, str | None]]:
    """The rows of a CSV; ConfigError where it is none or lacks a column that all rows need.

    Blank rows are none; a column that means the same as an earlier one is left out.
    """
    text = PREAMBLE.sub(lambda found: "\n" * found[0].count("\n"), text.lstrip("\ufeff"))
    header_line = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t|", key=header_line.count)
    records = [record for record in _records(text, delimiter) if any(record.cells)]
    if not records:
        fix = f"a first line that names columns: {','.join(COLUMNS)}"
        raise ConfigError([_empty(name, "no rows", fix)])
    header = _header(records[0].cells)
    if missing := [column for column in REQUIRED if column not in header]:
        if records[0].broken:
            reason = f"not a CSV table: {records[0].broken}"
            raise ConfigError([Finding(field=name, rule="bad-table", reason=reason, fix=HOW)])
        raise ConfigError([_missing(name, column) for column in missing])
    if len(records) == 1:
        raise ConfigError(
            [_empty(name, "a header, and no rows", "a row per measured run below it")]
        )
    units = [column_unit(cell) for cell in records[0].cells]
    if not text.endswith(("\n", "\r")):
        _mark_torn_end(records)
    rows = [_cells(header, units, record, at) for at, record in enumerate(records[1:], 2)]
    return _with_points(rows, delimiter)


def _header(cells: Sequence[str]) -> list[str]:
    """The columns meant; where one stands by its own name, no other name means it."""
    own = {cell for cell in cells if cell in COLUMNS}
    meant = [column_name(cell) for cell in cells]
    return [cell if name in own else name for cell, name in zip(cells, meant, strict=True)]


def columns_not_read(rows: Iterable[Mapping[str, str | None]]) -> list[str]:
    """Names of columns that mean nothing here, but for those that other readers are meant for."""
    read = {*OWN_COLUMNS, LINE, BROKEN, "from_memory", ""}
    return [name for name in dict.fromkeys(name for row in rows for name in row)
            if name not in read]  # fmt: skip


PREAMBLE = re.compile(r"\A(?:[ \t]*(?:#(?![^\n]*gpus)[^\n]*|sep=[^\n]{1,3})?\r?\n)+")
"""Remarks before the header, and the line by which Excel says what separates cells."""


def _mark_torn_end(records: Sequence[_Record]) -> None:
    """A file that ends inside a row, where all others are whole."""
    *whole, last = (len(record.cells) for record in records)
    if len(whole) > 1 and min(whole) == max(whole) > last:
        records[-1].broken = records[-1].broken or "the file ends inside this row"


FRACTIONS = ("params_b", *MEASURED)
"""Columns whose numbers need not be whole."""


def _with_points(rows: list[dict[str, str | None]], delimiter: str) -> list[dict[str, str | None]]:
    """Where commas mark decimals, points in their place: `3,528` of a table whose cells are
    separated by semicolons, or in which `0,41` or `3,5` stands and nowhere `3.5`.
    """
    cells = [row.get(column) or "" for row in rows for column in FRACTIONS]
    if any(re.search(r"\d\.\d", cell) for cell in cells):
        return rows
    if delimiter != ";" and not any(re.match(r"0,\d|\d+,\d{1,2}(?!\d)", cell) for cell in cells):
        return rows
    return [
        row | {name: (row[name] or "").replace(",", ".") for name in FRACTIONS if name in row}
        for row in rows
    ]


HOW = "a CSV file of measured runs; docs/backtest.md names the columns"


@dataclass(kw_only=True)
class _Record:
    cells: list[str]
    line: int
    """Of the file, where the record ends."""
    broken: str = ""
    """What is wrong with it as a whole."""
    has_loose_quotes: bool = False
    """Inside its cells; nothing is wrong where it has all cells nevertheless."""


def _records(text: str, delimiter: str) -> Iterator[_Record]:
    """A quote that nothing closes, or that closes inside a later row, would take the rows between
    with it: the line that it is in is then a record by itself, and reading goes on behind it.
    """
    lines, start = list(io.StringIO(text, newline="")), 0
    while start < len(lines):
        found = _first_record(lines, start, delimiter)
        yield found
        start = found.line


def _first_record(lines: Sequence[str], start: int, delimiter: str) -> _Record:
    """The one that begins on this line (counted from 0)."""
    # Not islice, which would count to the start of every record anew.
    reader = csv.reader(map(lines.__getitem__, range(start, len(lines))), delimiter=delimiter)
    try:
        cells = next(reader)
        end = start + reader.line_num
        is_torn = _is_torn(lines[start:end], delimiter)
    except csv.Error:  # a cell longer than any: a quote has swallowed the rest of the file
        is_torn = True
    broken = "a quote that nothing closes" if is_torn else ""
    if is_torn:
        end = start + 1
        try:
            cells = next(csv.reader(lines[start:end], delimiter=delimiter))
        except csv.Error as error:
            cells, broken = [lines[start].partition(delimiter)[0][:80]], str(error)
    return _Record(
        cells=[cell.strip() for cell in cells], line=end, broken=broken,
        has_loose_quotes=end == start + 1 and lines[start].count('"') % 2 == 1,
    )  # fmt: skip


def _is_torn(lines: Sequence[str], delimiter: str) -> bool:
    """Whether a quote is left open at the end, or closed in the middle of a later row's cell."""
    if len(lines) == 1 and lines[0].count('"') % 2 == 0:
        return False
    try:
        list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return len(lines) > 1 or str(error) == "unexpected end of data"
    return False


LINE = "line of the file"
"""A cell that says where the row ends."""

BROKEN = "what is broken"
"""A cell that says what is wrong with the whole row."""


def _empty(name: str, reason: str, fix: str) -> Finding:
    return Finding(field=name, rule="empty-table", reason=reason, fix=fix)


def _missing(name: str, column: str) -> Finding:
    return Finding(
        field=name,
        value=column,
        rule="missing-column",
        reason="the table lacks this column",
        legal=COLUMNS,
        fix=f"a column {column} in its first line",
    )


def _cells(
    header: list[str], units: list[str], record: _Record, number: int
) -> dict[str, str | None]:
    """A row that is broken as a whole is marked by a cell of its own."""
    line = record.cells
    cells: dict[str, str | None] = {}
    for column, unit, cell in zip(header, units, line, strict=False):
        has_unit = not unit or cell[-1:].isalpha() or re.search(r"\d", cell) is None
        cells.setdefault(column, cell if has_unit else f"{cell} {unit}")
    missing = [name for name in REQUIRED if header.index(name) >= len(line)]
    if record.broken:
        cells[BROKEN] = record.broken
    elif any(line[len(header) :]):
        cells[BROKEN] = "more cells than columns"
    elif record.has_loose_quotes and len(line) < len(header):
        cells[BROKEN] = "a quote that closes inside a cell"
    elif missing:
        cells[BROKEN] = f"it ends before its cell of {missing[0]}"
    cells["id"] = cells.get("id") or f"row {number}"
    return cells | {LINE: str(record.line)}
