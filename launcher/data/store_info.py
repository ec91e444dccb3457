"""What store.json says of a token store; read without numpy, so that a plan can afford it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from launcher.frozen import frozen

STORE_FILE, TOKENS_FILE, DOCUMENTS_FILE = "store.json", "tokens.bin", "documents.idx"
FORMAT, FORMAT_VERSION = "launch-token-store", 1
TOKEN_BYTES = {"uint16": 2, "uint32": 4}
"""Types of a store's tokens and their width; a store takes the first that holds its vocabulary."""
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Code in the header -> integer type (Megatron-LM, core/datasets/indexed_dataset.py)."""
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, type code, number of sequences, number of document borders."""


class Unreadable(Exception):
    """A store or an index that is not what it should be; the message says why."""


@frozen
class TokenizerInfo:
    """Which tokenizer made the tokens."""

    name: str
    """byte, or the name of its file."""
    sha256: str
    """Of the tokenizer.json; of the word `byte` for the built-in one."""
    vocab_size: int
    """Ids are below this, the end token's included."""
    end_token: int
    """Ends every document."""


@frozen
class FileInfo:
    """One file of a store."""

    bytes: int
    crc32: int


@frozen
class StoreInfo:
    """store.json: written last, so where it is, the store is whole."""

    dtype: str
    """uint16 or uint32, little-endian."""
    num_tokens: int
    """End tokens included."""
    num_documents: int
    largest_token: int
    """Largest id that occurs."""
    tokenizer: TokenizerInfo
    files: dict[str, FileInfo]
    """By name: tokens.bin and documents.idx."""
    bad_lines: int = 0
    """Lines and rows of the inputs that were left out."""

    def to_json(self) -> dict[str, Any]:
        """As written."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "dtype": self.dtype,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "largest_token": self.largest_token,
            "tokenizer": vars(self.tokenizer),
            "files": {name: vars(info) for name, info in self.files.items()},
            "bad_lines": self.bad_lines,
        }


def read_store_info(folder: Path) -> StoreInfo:
    """store.json of a folder, with the sizes of its files checked.

    Raises Unreadable.
    """
    try:
        document = json.loads((folder / STORE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(_absent(folder)) from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{STORE_FILE} cannot be read: {error}") from None
    info = _from_json(document)
    widths = {TOKENS_FILE: info.num_tokens * TOKEN_BYTES[info.dtype]}
    widths[DOCUMENTS_FILE] = 8 * (info.num_documents + 1)
    for name, wanted in widths.items():
        found = os.stat(folder / name).st_size if (folder / name).is_file() else None
        if found != wanted:
            have = "is absent" if found is None else f"has {found} bytes"
            raise Unreadable(f"{name} {have} where {STORE_FILE} says {wanted}")
    return info


def read_megatron_header(index: Path) -> tuple[str, int, int]:
    """Type of the tokens, number of sequences and number of document borders of an .idx file.

    Raises Unreadable.
    """
    try:
        with index.open("rb") as stream:
            head = stream.read(MEGATRON_HEADER.size)
    except OSError as error:
        raise Unreadable(f"{index.name}: {error.strerror}") from None
    if len(head) < MEGATRON_HEADER.size or not head.startswith(MEGATRON_MAGIC):
        raise Unreadable(f"{index.name} does not start as an index of Megatron-LM (MMIDIDX)")
    _, version, code, num_sequences, num_borders = MEGATRON_HEADER.unpack(head)
    if version != 1:
        raise Unreadable(f"{index.name} has version {version}, only 1 is known")
    if code not in MEGATRON_DTYPES:
        raise Unreadable(f"{index.name} has the type code {code}, which is no whole number's")
    return MEGATRON_DTYPES[code], num_sequences, num_borders


def megatron_prefix(path: str) -> str:
    """`corpus_text_document`, whether or not .bin or .idx was typed behind it."""
    return path[:-4] if path.endswith((".bin", ".idx")) else path


def _absent(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else "a token store is a folder"
    return f"no {STORE_FILE} in it; `launch tokenize` makes token stores"


def _from_json(document: Any) -> StoreInfo:
    try:
        if document["format"] != FORMAT or document["version"] != FORMAT_VERSION:
            raise Unreadable(f"{STORE_FILE} is not of format {FORMAT}, version {FORMAT_VERSION}")
        tokenizer = TokenizerInfo(**document["tokenizer"])
        files = {name: FileInfo(**info) for name, info in document["files"].items()}
        keys = ("dtype", "num_tokens", "num_documents", "largest_token", "bad_lines")
        info = StoreInfo(tokenizer=tokenizer, files=files, **{key: document[key] for key in keys})
        whole = (info.num_tokens, info.num_documents, info.largest_token, tokenizer.vocab_size)
        if info.dtype in TOKEN_BYTES and all(isinstance(number, int) for number in whole):
            return info
    except (KeyError, TypeError, AttributeError):
        pass
    raise Unreadable(f"{STORE_FILE} has other fields than a token store")
