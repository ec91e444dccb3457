"""One task's documents as a part of a store: written whole or not at all, merged in order."""

# What a part consists of: .tokens and .lengths (uint64 per document), and .json, written last.

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.documents import Bad, Document, Reading, count_lines_before, read_documents
from launcher.data.pieces import Task
from launcher.data.store import (
    ChecksummedFile,
    StoreWriter,
    checksum,
    narrowest_dtype,
    read_chunks,
    write_atomically,
)
from launcher.data.store_info import StoreInfo
from launcher.data.tokenizer import Tokenizer

SHOWN = 20
"""Bad lines of a part that are named; all are counted."""
_BATCH_TEXT, _BATCH_DOCUMENTS = 1 << 20, 1024  # characters and documents encoded at once


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """Where something was left out."""

    path: str
    line: int
    """From 1; 0: the file itself."""
    reason: str

    def __str__(self) -> str:
        """`corpus.jsonl:17: no JSON (...)`."""
        return (
            f"{self.path}:{self.line}: {self.reason}"
            if self.line
            else f"{self.path}: {self.reason}"
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part."""

    number: int
    num_documents: int
    num_tokens: int
    largest_token: int
    num_bad: int
    bad: tuple[BadLine, ...]
    """The first of them."""
    tokens_crc32: int
    lengths_crc32: int


@dataclass(frozen=True)
class PartFiles:
    """Names of a part's files."""

    folder: Path
    number: int

    def path(self, suffix: str) -> Path:
        """tokens, lengths or json."""
        return self.folder / f"part_{self.number:06d}.{suffix}"


def write_part(
    task: Task, folder: Path, tokenizer: Tokenizer, reading: Reading, strict: bool
) -> Part:
    """Tokenize a task; with `strict` stop at the first bad line, leaving no part."""
    files, kind = PartFiles(folder, task.number), narrowest_dtype(tokenizer.info.vocab_size)
    # Own names until they are whole: a process of an attempt that was killed may still be writing.
    own = {suffix: files.path(f"{suffix}.{os.getpid()}") for suffix in ("tokens", "lengths")}
    tokens, lengths = (ChecksummedFile(path) for path in own.values())
    counts = {"num_documents": 0, "num_tokens": 0, "largest_token": 0}
    bad: list[BadLine] = []
    num_bad, length = 0, 0
    for batch in _batches(task, reading):
        wrong = [found for found in batch if isinstance(found, BadLine)]
        num_bad += len(wrong)
        bad += wrong[: SHOWN - len(bad)]
        if strict and bad:
            break
        documents = [found for found in batch if isinstance(found, Document)]
        ends: list[int] = []
        encoded = tokenizer.encode([document.text for document in documents])
        pieces: list[npt.NDArray[Any]] = []
        for document, ids in zip(documents, encoded, strict=True):
            pieces.append(ids)
            length += len(ids)
            if document.ends:
                pieces.append(np.array([tokenizer.info.end_token], np.uint32))
                ends.append(length + 1)
                length = 0
        if pieces:
            row = np.concatenate(pieces)
            counts["num_tokens"] += len(row)
            counts["largest_token"] = max(counts["largest_token"], int(row.max(initial=0)))
            tokens.write(row.astype(np.dtype(kind).newbyteorder("<")).tobytes())
        counts["num_documents"] += len(ends)
        lengths.write(np.array(ends, "<u8").tobytes())
    crcs = {"tokens_crc32": tokens.close().crc32, "lengths_crc32": lengths.close().crc32}
    part = Part(number=task.number, num_bad=num_bad, bad=tuple(bad), **counts, **crcs)
    if not (strict and bad):
        for suffix, path in own.items():
            path.replace(files.path(suffix))
        write_atomically(files.path("json"), json.dumps(asdict(part)) + "\n")
    return part


def read_part(folder: Path, number: int) -> Part | None:
    """A part that was finished before; None where there is none."""
    try:
        document = json.loads(PartFiles(folder, number).path("json").read_text())
    except FileNotFoundError:
        return None
    bad = tuple(BadLine(**line) for line in document.pop("bad"))
    return Part(bad=bad, **document)


def merge_parts(
    parts: list[Part], folder: Path, store: Path, tokenizer: Tokenizer
) -> StoreInfo | list[int]:
    """All parts as one store; numbers of damaged parts instead, which are gone afterwards."""
    writer = StoreWriter(folder=store, tokenizer=tokenizer.info)
    damaged = []
    for part in parts:
        files = PartFiles(folder, part.number)
        crcs = [checksum(files.path(suffix)) for suffix in ("tokens", "lengths")]
        if crcs != [part.tokens_crc32, part.lengths_crc32]:
            files.path("json").unlink()
            damaged.append(part.number)
        if damaged:
            continue
        lengths = np.fromfile(files.path("lengths"), "<u8")
        writer.append(read_chunks(files.path("tokens")), lengths, part.largest_token)
    return damaged or writer.finish(sum(part.num_bad for part in parts))


def _batches(task: Task, reading: Reading) -> Iterator[list[Document | BadLine]]:
    """Everything in a task, as much at once as a tokenizer likes."""
    batch: list[Document | BadLine] = []
    size = 0
    for piece in task.pieces:
        before: int | None = None
        for found in read_documents(piece, reading):
            if isinstance(found, Bad):
                if before is None:
                    before = count_lines_before(piece)
                line = found.line + before if found.line else 0
                batch.append(BadLine(path=piece.path, line=line, reason=found.reason))
            else:
                batch.append(found)
                size += len(found.text)
            if size >= _BATCH_TEXT or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, size = [], 0
    yield batch
