"""A token store on disk: opened in no time whatever its size, written whole or not at all.

STORE/tokens.bin       token ids one after the other, little-endian uint16 or uint32
STORE/documents.idx    where documents begin, as token offsets: uint64, one more than documents
STORE/store.json       counts, tokenizer, sizes and checksums
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from launcher.data.store_info import (
    DOCUMENTS_FILE,
    STORE_FILE,
    TOKEN_BYTES,
    TOKENS_FILE,
    FileInfo,
    StoreInfo,
    TokenizerInfo,
    read_store_info,
)
from launcher.data.text import Text, map_tokens, whole_text

_CHUNK = 1 << 22  # bytes read or written at once


def open_store(folder: Path) -> tuple[StoreInfo, Text]:
    """The maps of a store; nothing is read but store.json.

    Raises Unreadable.
    """
    info = read_store_info(folder)
    tokens = map_tokens(folder / TOKENS_FILE, info.dtype)
    return info, whole_text(tokens, map_tokens(folder / DOCUMENTS_FILE, "uint64"))


def damaged_files(folder: Path) -> list[str]:
    """Names of the files whose checksum is not the one in store.json; reads all of them."""
    info = read_store_info(folder)
    return [name for name, file in info.files.items() if checksum(folder / name) != file.crc32]


def narrowest_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every id: uint16 up to 65,536 of them."""
    return next(name for name, width in TOKEN_BYTES.items() if vocab_size <= 1 << 8 * width)


@dataclass(kw_only=True)
class StoreWriter:
    """Appends documents to a folder that nobody reads yet; `finish` makes it a store."""

    folder: Path
    tokenizer: TokenizerInfo
    num_tokens: int = 0
    num_documents: int = 0
    largest_token: int = 0
    _files: dict[str, ChecksummedFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = narrowest_dtype(self.tokenizer.vocab_size)
        for name in (TOKENS_FILE, DOCUMENTS_FILE):
            self._files[name] = ChecksummedFile(self.folder / name)
        self._files[DOCUMENTS_FILE].write(np.zeros(1, "<u8").tobytes())

    def append(self, tokens: Iterable[bytes], lengths: np.ndarray, largest_token: int) -> None:
        """Add documents: their tokens as they stand in the file, and how many each has."""
        for chunk in tokens:
            self._files[TOKENS_FILE].write(chunk)
        ends = self.num_tokens + np.cumsum(lengths, dtype=np.uint64)
        self._files[DOCUMENTS_FILE].write(ends.astype("<u8").tobytes())
        self.num_documents += len(lengths)
        self.num_tokens += int(lengths.sum())
        self.largest_token = max(self.largest_token, largest_token)

    def finish(self, bad_lines: int = 0) -> StoreInfo:
        """Bring everything to the disk; store.json comes last."""
        info = StoreInfo(
            dtype=self.dtype,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            largest_token=self.largest_token,
            tokenizer=self.tokenizer,
            files={name: file.close() for name, file in self._files.items()},
            bad_lines=bad_lines,
        )
        write_atomically(self.folder / STORE_FILE, json.dumps(info.to_json(), indent=1) + "\n")
        sync_folder(self.folder)
        return info


class ChecksummedFile:
    """A file that is written once, from its start to its end."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._bytes = self._crc32 = 0

    def write(self, content: bytes) -> None:
        """Append."""
        self._stream.write(content)
        self._bytes += len(content)
        self._crc32 = zlib.crc32(content, self._crc32)

    def close(self) -> FileInfo:
        """Bring it to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return FileInfo(bytes=self._bytes, crc32=self._crc32)


def read_chunks(path: Path) -> Iterable[bytes]:
    """A file in pieces."""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    for chunk in read_chunks(path):
        value = zlib.crc32(chunk, value)
    return value


def write_atomically(path: Path, text: str) -> None:
    """Whole or not at all: a name only ever points at a complete file."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
