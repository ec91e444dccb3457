"""Whether the files of a run's data still hold what a checkpoint's run has read of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from launcher.config.resume import Change
from launcher.config.schema import Data
from launcher.data.store_info import Unreadable, megatron_prefix, read_store_info

_ENDS = 1 << 20
"""Bytes that are read of a bare file's beginning and of its end."""


def data_content(data: Data) -> dict[str, str]:
    """Path -> digest of what lies there, found without reading the tokens.

    Of a store its own checksums; of other files size, beginning and end. Paths that cannot be read
    here are left out.
    """
    places: list[tuple[str, str]] = [(source.kind, source.path) for source in data.sources]
    if data.path is not None:
        places.append((data.kind, data.path))
    found = {path: _digest(kind, path) for kind, path in places}
    return {path: digest for path, digest in found.items() if digest is not None}


def content_changes(saved: Mapping[str, str], data: Data) -> tuple[Change, ...]:
    """Files that were replaced under their old names since a checkpoint was made."""
    return tuple(
        Change(key=f"content of {path}", kind="numerics", old=saved[path], new=digest)
        for path, digest in data_content(data).items()
        if path in saved and saved[path] != digest
    )


def _digest(kind: str, path: str) -> str | None:
    try:
        if kind == "store":
            files = read_store_info(Path(path)).files
            words = [f"{name} {info.bytes} {info.crc32}" for name, info in sorted(files.items())]
        elif kind == "megatron":
            words = [_ends(megatron_prefix(path) + suffix) for suffix in (".idx", ".bin")]
        else:
            words = [_ends(path)]
    except (Unreadable, OSError):
        return None
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _ends(path: str) -> str:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(stream.read(_ENDS))
        stream.seek(max(0, size - _ENDS))
        digest.update(stream.read(_ENDS))
    return f"{size} {digest.hexdigest()}"
