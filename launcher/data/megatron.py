"""Megatron-LM's indexed data sets (.bin and .idx, version 1), read as they are.

An .idx file has its header, then per sequence an int32 length and an int64 byte offset into the
.bin file, then per document the int64 number of its first sequence, and one more for the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.store_info import (
    MEGATRON_HEADER,
    Unreadable,
    megatron_prefix,
    read_megatron_header,
)
from launcher.data.text import Text, Tokens, map_tokens, whole_text


@dataclass(frozen=True)
class MegatronBorders:
    """Documents as token offsets, looked up in the maps of the index and never copied."""

    offsets: Tokens
    """Byte offset of every sequence."""
    first_sequences: Tokens
    """Number of each document's first sequence; the last is the number of sequences."""
    token_bytes: int
    num_tokens: int

    def __len__(self) -> int:
        return len(self.first_sequences)

    def __getitem__(self, index: int | slice) -> Any:
        sequences = np.atleast_1d(self.first_sequences[index])
        # Copies: the maps are not aligned to their numbers.
        inside = np.minimum(sequences, len(self.offsets) - 1)
        starts = np.array(self.offsets[inside]) // self.token_bytes
        starts[sequences >= len(self.offsets)] = self.num_tokens
        return starts if isinstance(index, slice) else int(starts[0])

    @property
    def pages(self) -> tuple[Tokens, ...]:
        """The maps behind it."""
        return self.offsets, self.first_sequences


def open_megatron(path: str) -> Text:
    """The maps of a data set; nothing is read but its header and a few borders.

    Raises Unreadable.
    """
    prefix = megatron_prefix(path)
    index, tokens_file = Path(prefix + ".idx"), Path(prefix + ".bin")
    dtype, num_sequences, num_borders = read_megatron_header(index)
    if not tokens_file.is_file():
        raise Unreadable(f"{tokens_file.name} is absent")
    lengths_at = MEGATRON_HEADER.size
    offsets_at = lengths_at + 4 * num_sequences
    documents_at = offsets_at + 8 * num_sequences
    if index.stat().st_size < documents_at + 8 * num_borders:
        raise Unreadable(f"{index.name} ends before its last entry")
    width, size = np.dtype(dtype).itemsize, tokens_file.stat().st_size
    if size % width:
        raise Unreadable(f"{tokens_file.name}: {size} bytes are no whole number of {dtype}")
    borders = MegatronBorders(
        offsets=map_tokens(index, "int64", offsets_at, num_sequences),
        first_sequences=map_tokens(index, "int64", documents_at, num_borders),
        token_bytes=width,
        num_tokens=size // width,
    )
    lengths = map_tokens(index, "int32", lengths_at, num_sequences)
    _check_ends(index, borders, lengths, size)
    return whole_text(map_tokens(tokens_file, dtype), borders)


def _check_ends(index: Path, borders: MegatronBorders, lengths: Tokens, size: int) -> None:
    """The first and last entries say enough: a torn or foreign .bin file shows there."""
    num_sequences = len(lengths)
    if num_sequences == 0:
        return
    first, last = int(borders.offsets[0]), int(borders.offsets[-1])
    end = last + int(lengths[-1]) * borders.token_bytes
    if first != 0 or end != size:
        raise Unreadable(
            f"{index.name} describes bytes {first} to {end} of a .bin file that has {size}"
        )
    documents = borders.first_sequences
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != num_sequences:
        raise Unreadable(f"the documents in {index.name} do not cover its sequences")
