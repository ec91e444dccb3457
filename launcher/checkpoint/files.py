"""safetensors files: written in one stream with their checksum, read through a memory map.

The format is a length (8 bytes, little-endian), a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It is read and written here directly because
a checkpoint streams: no tensor is copied into a `bytes` first, and the checksum is made on the way.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.checkpoint.boxes import Shape
from launcher.checkpoint.manifest import FileRecord

BLOCK_BYTES = 8 * 2**20
"""Written or checked at once: large for a disk, small enough for the caches between."""
ALIGNMENT = 4096
"""Tensor data starts at a multiple of it: a page, so that maps and direct writes are aligned."""
_WRITEBACK_BYTES = 64 * 2**20
_MAX_HEADER = 2**30


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One float32 tensor of a file, in the order in which its bytes come."""

    key: str
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """4 per element."""
        return 4 * math.prod(self.shape)


class Torn(ValueError):
    """A file that is not the safetensors file that it should be."""


def header_bytes(entries: Sequence[Entry]) -> bytes:
    """Length and JSON header for float32 tensors, padded with spaces as the format allows."""
    header: dict[str, Any] = {}
    start = 0
    for entry in entries:
        end = start + entry.num_bytes
        header[entry.key] = {
            "dtype": "F32",
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_file(
    path: Path,
    entries: Sequence[Entry],
    chunks: Iterable[memoryview | bytes],
    fault: Callable[[str], None] = lambda point: None,
) -> FileRecord:
    """Write a new safetensors file and flush it to the disk; OSError where that fails.

    `chunks` are the tensors' bytes in the order of `entries`, cut anywhere. `fault` is called at
    points where a test wants to break the writing.
    """
    header = header_bytes(entries)
    expected = len(header) + sum(entry.num_bytes for entry in entries)
    digest = xxhash.xxh3_128()
    size = since_flush = 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _reserve(handle, expected)
        for block in _blocks(header, chunks):
            digest.update(block)
            _write_all(handle, block)
            size += len(block)
            since_flush += len(block)
            if since_flush >= _WRITEBACK_BYTES:
                _start_writeback(handle, size - since_flush, since_flush)
                since_flush = 0
            fault("file-block")
        assert size == expected, f"{path.name}: {size} bytes for {expected}"
        fault("file-written")
        os.fsync(handle)
        fault("file-flushed")
    finally:
        os.close(handle)
    return FileRecord(size=size, checksum=f"xxh3_128:{digest.hexdigest()}")


def checksum_of(path: Path) -> FileRecord:
    """Size and checksum of a file as it is."""
    digest, size = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size=size, checksum=f"xxh3_128:{digest.hexdigest()}")


class TensorFile:
    """A safetensors file of float32 tensors, mapped: only what is touched is read."""

    def __init__(self, path: Path) -> None:
        try:
            self._map = np.memmap(path, np.uint8, mode="r")
            length = int.from_bytes(self._map[:8].tobytes(), "little")
            if length > min(_MAX_HEADER, len(self._map) - 8):
                raise Torn(f"{path.name} is shorter than its header says")
            header: dict[str, Any] = json.loads(self._map[8 : 8 + length].tobytes())
        except (OSError, ValueError) as error:
            raise error if isinstance(error, Torn) else Torn(f"{path.name}: {error}") from error
        header.pop("__metadata__", None)
        self._start, self._header, self._name = 8 + length, header, path.name

    def tensor(self, key: str) -> NDArray[np.float32]:
        """A read-only view of one tensor; Torn where the file does not hold it."""
        try:
            entry = self._header[key]
            first, end = entry["data_offsets"]
            raw = self._map[self._start + first : self._start + end]
            found: NDArray[np.float32] = raw.view("<f4").reshape(entry["shape"])
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise Torn(f"{self._name}: no whole tensor {key} ({error})") from error


def flush_folder(folder: Path) -> None:
    """Make names in a folder durable: a rename is safe only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _blocks(header: bytes, chunks: Iterable[memoryview | bytes]) -> Iterable[memoryview]:
    yield memoryview(header)
    for chunk in chunks:
        view = memoryview(chunk).cast("B") if len(chunk) else memoryview(b"")
        for start in range(0, len(view), BLOCK_BYTES):
            yield view[start : start + BLOCK_BYTES]


def _write_all(handle: int, block: memoryview) -> None:
    while len(block):
        block = block[os.write(handle, block) :]


def _reserve(handle: int, size: int) -> None:
    """Claim the space at once: a full disk is known before the writing, which also gets faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _start_writeback(handle: int, start: int, length: int) -> None:
    """Have the kernel write while we go on: the flush at the end then finds little to do."""
    if hasattr(os, "posix_fadvise"):
        # Linux starts writing dirty pages of the range when told that they are not needed again.
        os.posix_fadvise(handle, start, length, os.POSIX_FADV_DONTNEED)
