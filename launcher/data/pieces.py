"""How inputs are cut into tasks that processes share: the same cut however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.data.extras import import_extra
from launcher.data.inputs import COMPRESSED, InputFile, Kind

SMALLEST_TASK, LARGEST_TASK, MOST_TASKS = 1 << 22, 1 << 28, 4096
"""Bytes, bytes, and about how many tasks are made between the two."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one file: bytes of plain JSONL, row groups of Parquet, else all of it."""

    path: str
    kind: Kind
    start: int = 0
    stop: int | None = None
    """None: to the end."""
    bytes: int
    """About how much is read."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Pieces that one process tokenizes into one part of the store."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """About how much is read."""
        return sum(piece.bytes for piece in self.pieces)


def cut_tasks(files: tuple[InputFile, ...], splits_text: bool) -> list[Task]:
    """Tasks of similar size, in the order of the files.

    `splits_text`: lines of text are documents, so that text may be cut at any line.
    """
    total = sum(file.path.stat().st_size for file in files)
    size = min(LARGEST_TASK, max(SMALLEST_TASK, total // MOST_TASKS))
    tasks: list[Task] = []
    pieces: list[Piece] = []
    for file in files:
        for piece in _cut(file, size, splits_text):
            pieces.append(piece)
            if sum(piece.bytes for piece in pieces) >= size:
                tasks.append(Task(number=len(tasks), pieces=tuple(pieces)))
                pieces = []
    if pieces:
        tasks.append(Task(number=len(tasks), pieces=tuple(pieces)))
    return tasks


def _cut(file: InputFile, size: int, splits_text: bool) -> Iterator[Piece]:
    path, kind, length = str(file.path.absolute()), file.kind, file.path.stat().st_size
    has_lines = kind == "jsonl" or (kind == "text" and splits_text)
    if has_lines and file.path.suffix.lower() not in COMPRESSED:
        for start in range(0, length, size):
            stop = min(length, start + size)
            yield Piece(path=path, kind=kind, start=start, stop=stop, bytes=stop - start)
    elif kind == "parquet":
        yield from _cut_row_groups(file.path, size)
    else:
        yield Piece(path=path, kind=kind, bytes=length)


def _cut_row_groups(path: Path, size: int) -> Iterator[Piece]:
    """Neighbouring row groups up to a size; a file that cannot be read is left to its reader."""
    parquet = import_extra("pyarrow.parquet", "Parquet")
    text, length = str(path.absolute()), path.stat().st_size
    try:
        num_groups = parquet.ParquetFile(path).num_row_groups
    except Exception:  # pyarrow's own errors; the reader reports it with the file's name
        yield Piece(path=text, kind="parquet", bytes=length)
        return
    step = max(1, num_groups * size // max(1, length))
    for start in range(0, num_groups, step):
        stop = min(num_groups, start + step)
        share = length * (stop - start) // num_groups
        yield Piece(path=text, kind="parquet", start=start, stop=stop, bytes=share)
