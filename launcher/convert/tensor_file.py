"""One safetensors file: its header checked in full, boxes read one by one, tensors streamed out.

The `safetensors` package writes a file from tensors that are all in memory; here no more than a
piece of one tensor ever is. The format: 8 bytes with the header's length, the header in JSON, the
bytes of all tensors without gaps (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.convert.numbers import STORED, Array, item_size, to_float32

_LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors package refuses longer ones, too."""


class TornFile(Exception):
    """A file that is not a whole safetensors file; the message says why."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One row of a header."""

    path: Path
    name: str
    dtype: str
    """As safetensors calls it, e.g. BF16."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return math.prod(self.shape) * item_size(self.dtype)

    def read(self, offsets: Sequence[int], sizes: Sequence[int]) -> Array:
        """A box of the tensor in float32; only its own bytes are read."""
        return to_float32(self.read_stored(offsets, sizes), self.dtype)

    def read_stored(self, offsets: Sequence[int], sizes: Sequence[int]) -> Array:
        """A box of the tensor, numbers as they are stored."""
        assert len(offsets) == len(sizes) == len(self.shape)
        box = np.empty(tuple(sizes), dtype=STORED[self.dtype])
        if box.size:
            with self.path.open("rb", buffering=0) as file:
                self._fill(file.fileno(), box, self.start, tuple(offsets), self.shape)
        return box

    def _fill(
        self, file: int, box: Array, start: int, offsets: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        """Read a box out of the row-major tensor of `shape` that begins at byte `start`."""
        row_bytes = math.prod(shape[1:]) * box.itemsize
        if box.ndim == 0 or box.shape[1:] == shape[1:]:
            first = start + (offsets[0] * row_bytes if offsets else 0)
            _read_exactly(file, _as_bytes(box), first, self)
            return
        for index in range(box.shape[0]):
            row = start + (offsets[0] + index) * row_bytes
            self._fill(file, box[index], row, offsets[1:], shape[1:])


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file by name; no weights are read.

    Raises TornFile where the file ends early, has no sound header, or holds a number format that
    is not read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            if len(head) < 8:
                raise TornFile(f"it has {size} bytes and so no header")
            (length,) = struct.unpack("<Q", head)
            if length > _LONGEST_HEADER or 8 + length > size:
                raise TornFile(f"its header would be {length} bytes long, the file is {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise TornFile(error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise TornFile("its header is not JSON") from error
    if not isinstance(header, dict):
        raise TornFile("its header is not a JSON object")
    header.pop("__metadata__", None)
    return _stored_tensors(path, header, 8 + length, size)


def _stored_tensors(
    path: Path, header: Mapping[str, Any], data_start: int, size: int
) -> dict[str, StoredTensor]:
    tensors, end = {}, 0
    for name, row in header.items():
        try:
            dtype, (first, last) = str(row["dtype"]), row["data_offsets"]
            shape = tuple(row["shape"])
            is_sound = all(type(n) is int and n >= 0 for n in (*shape, first, last))
        except (TypeError, KeyError, ValueError):
            raise TornFile(f"its header has no shape, type and place for {name}") from None
        if dtype not in STORED:
            formats = ", ".join(sorted(STORED))
            raise TornFile(f"{name} is stored as {dtype}; only {formats} are read")
        tensor = StoredTensor(
            path=path, name=name, dtype=dtype, shape=shape, start=data_start + first
        )
        if not is_sound or last - first != tensor.num_bytes:
            raise TornFile(f"its header gives {name} other bytes than its shape needs")
        tensors[name], end = tensor, max(end, last)
    if data_start + end != size:
        raise TornFile(f"it should have {data_start + end} bytes and has {size}")
    return tensors


def _as_bytes(numbers: Array) -> memoryview:
    return numbers.reshape(-1).view(np.uint8).data


def _read_exactly(file: int, into: memoryview, start: int, tensor: StoredTensor) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], start + done)
        if count == 0:
            raise TornFile(f"{tensor.path.name} ends inside {tensor.name}")
        done += count


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """What will stand in a file that is written."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return math.prod(self.shape) * item_size(self.dtype)


class TensorFileWriter:
    """Writes one file front to back; the header comes first, so all tensors are named at once."""

    def __init__(self, path: Path, tensors: Sequence[NewTensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in tensors:
            place = [end, end + tensor.num_bytes]
            header[tensor.name] = {
                "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place,
            }  # fmt: skip
            end = place[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # numbers begin on a multiple of 8
        self._left = end
        self._file = path.open("xb", buffering=0)
        self._write(struct.pack("<Q", len(text)) + text)

    def append(self, stored: Array) -> None:
        """The next numbers, as they are stored; tensors follow each other in the order named."""
        self._left -= stored.nbytes
        self._write(_as_bytes(np.ascontiguousarray(stored)))

    def close(self) -> None:
        """End the file, on the disk itself."""
        assert self._left == 0, f"{self._left} bytes of tensors were not given"
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close without a word, after an error."""
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]
