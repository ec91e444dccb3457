"""Token stores and Megatron-LM files for tests, made from lists of documents."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launcher.data.store import StoreWriter
from launcher.data.store_info import TokenizerInfo

END = 256


def make_documents(count: int, seed: int = 0, vocab_size: int = 256, longest: int = 40):
    """Documents of 1 to `longest` tokens and the end token."""
    random = np.random.default_rng(seed)
    return [
        [*random.integers(0, vocab_size, random.integers(1, longest + 1)).tolist(), END]
        for _ in range(count)
    ]


def make_store(
    folder: Path, documents: Sequence[Sequence[int]], vocab_size: int = END + 1, sha: str = "byte"
) -> Path:
    folder.mkdir(parents=True)
    tokenizer = TokenizerInfo(name="test", sha256=sha, vocab_size=vocab_size, end_token=END)
    writer = StoreWriter(folder=folder, tokenizer=tokenizer)
    kind = np.dtype(writer.dtype).newbyteorder("<")
    for document in documents:
        tokens = np.array(document, kind)
        writer.append([tokens.tobytes()], np.array([len(document)]), int(tokens.max()))
    writer.finish()
    return folder


def make_megatron(
    prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16", code: int = 8
) -> Path:
    """Documents of several sequences, byte for byte as Megatron-LM's writer lays them out.

    Header: 9 bytes of magic, version and type code, counts of sequences and of document borders.
    Then int32 lengths, int64 byte offsets, int64 numbers of the documents' first sequences.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * kind.itemsize
    borders = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    header = b"MMIDIDX\0\0" + struct.pack("<Q", 1) + struct.pack("<B", code)
    header += struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(borders))
    body = lengths.tobytes() + offsets.astype("<i8").tobytes() + borders.astype("<i8").tobytes()
    Path(f"{prefix}.idx").write_bytes(header + body)
    tokens = [token for sequence in sequences for token in sequence]
    np.array(tokens, kind).tofile(f"{prefix}.bin")
    return prefix
