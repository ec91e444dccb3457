"""One long row of token ids in a memory map, with the borders of its documents."""

from __future__ import annotations

import math
import mmap
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[Any]
"""Token ids of any integer type, usually a memory map."""


class Borders(Protocol):
    """Where documents begin, as token offsets in rising order; the last is the text's end."""

    def __len__(self) -> int:
        """One more than there are documents."""

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Tokens: ...


@dataclass(frozen=True, kw_only=True)
class Text:
    """Tokens [start, end) of a map."""

    tokens: Tokens
    """The whole map."""
    start: int
    end: int
    borders: Borders | None
    """Of the whole map; None: nobody knows where documents begin."""

    def __len__(self) -> int:
        return self.end - self.start

    def borders_between(self, first: int, last: int) -> Tokens:
        """The tokens first < t < last of the text at which documents begin, each once."""
        assert self.borders is not None, "a rule of the configuration refuses this"
        low = bisect_right(self.borders, first + self.start)
        high = bisect_left(self.borders, last + self.start, low)
        # Documents without tokens begin where the next one does.
        return np.unique(np.asarray(self.borders[low:high], np.int64)) - self.start

    def forget_pages(self) -> None:
        """Take what was read out of this process's memory; the system's cache keeps it.

        Pages of a map count as resident once touched: a long run would seem to grow to the size of
        its data.
        """
        for part in (self.tokens, getattr(self.borders, "pages", self.borders)):
            _forget(part)


def whole_text(tokens: Tokens, borders: Borders | None) -> Text:
    """All of a map."""
    return Text(tokens=tokens, start=0, end=len(tokens), borders=borders)


def split_text(text: Text, held_out: float) -> tuple[Text, Text]:
    """Training and validation: the shortest tail of whole documents with this share of the tokens.

    Without borders the cut is at a token.
    """
    cut = text.end - round(len(text) * held_out)
    if text.borders is not None and held_out > 0:
        cut = text.end - math.ceil(len(text) * held_out)
        index = bisect_right(text.borders, cut) - 1
        cut = max(text.start, int(text.borders[index]))
    left = Text(tokens=text.tokens, start=text.start, end=cut, borders=text.borders)
    right = Text(tokens=text.tokens, start=cut, end=text.end, borders=text.borders)
    return left, right


def map_tokens(path: Path, dtype: str, offset: int = 0, count: int | None = None) -> Tokens:
    """A read-only map; files are little-endian whatever the machine is."""
    kind = np.dtype(dtype).newbyteorder("<")
    if count == 0 or path.stat().st_size <= offset:
        return np.empty(0, kind)  # nothing cannot be mapped
    shape = None if count is None else (count,)
    # A plain array on the same pages: every slice of a np.memmap costs a microsecond more.
    return np.memmap(path, kind, mode="r", offset=offset, shape=shape).view(np.ndarray)


def resident_file_bytes() -> int:
    """How much of mapped files counts as resident memory of this process; 0 where nobody says."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _forget(part: object) -> None:
    parts = part if isinstance(part, tuple) else (part,)
    for array in parts:
        mapping = array
        while isinstance(mapping, np.ndarray):
            mapping = mapping.base
        if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
