"""Where the tokens lie: the standard library's sources as bytes, or the user's own file."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.config.schema import Data
from launcher.errors import ConfigError, Finding

Tokens = npt.NDArray[Any]
"""Token ids of any integer type, usually a memory map."""

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3",
     "turtledemo", "ensurepip", "__pycache__"}
)  # fmt: skip
SEPARATOR = b"\0"
"""Ends every document; no Python source may hold this byte."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The text, cut once."""

    train: Tokens
    validation: Tokens
    """The tail; empty with validation_fraction=0."""


def open_corpus(data: Data, folder: Path, writes: bool, barrier: Callable[[], None]) -> Corpus:
    """Memory maps of the tokens. `writes` on one rank per node; `barrier` waits for all ranks."""
    if data.kind == "tokens":
        return _open_tokens(data)
    train, validation = folder / "train.bin", folder / "validation.bin"
    if writes and not train.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept, held_out = split_documents(list(stdlib_documents()), data.validation_fraction)
        # train.bin comes last: where it is, both are.
        _write_atomically(validation, b"".join(held_out))
        _write_atomically(train, b"".join(kept))
    barrier()
    return Corpus(train=_map(train, "uint8"), validation=_map(validation, "uint8"))


def stdlib_documents() -> Iterator[bytes]:
    """Sources of this Python's standard library with their separator, in the order of paths."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        yield path.read_bytes() + SEPARATOR


def split_documents(documents: list[bytes], fraction: float) -> tuple[list[bytes], list[bytes]]:
    """Hold out the shortest tail of whole documents that has at least this share of the bytes."""
    wanted = fraction * sum(len(document) for document in documents)
    cut, held_out = len(documents), 0
    while held_out < wanted:
        cut -= 1
        held_out += len(documents[cut])
    return documents[:cut], documents[cut:]


def _open_tokens(data: Data) -> Corpus:
    assert data.path is not None, "a rule of the configuration refuses this"
    path = Path(data.path)
    if not path.is_file():
        raise _path_error(data, "no such file")
    size, width = path.stat().st_size, np.dtype(data.dtype).itemsize
    if size == 0 or size % width:
        raise _path_error(data, f"{size} bytes are no whole number of {data.dtype} tokens")
    tokens = _map(path, data.dtype)
    cut = len(tokens) - round(len(tokens) * data.validation_fraction)
    return Corpus(train=tokens[:cut], validation=tokens[cut:])


def _path_error(data: Data, reason: str) -> ConfigError:
    return ConfigError(
        [Finding(field="data.path", value=data.path, rule="data-readable", reason=reason)]
    )


def _map(path: Path, dtype: str) -> Tokens:
    """A read-only map; files are little-endian whatever the machine is."""
    kind = np.dtype(dtype).newbyteorder("<")
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _write_atomically(path: Path, content: bytes) -> None:
    """Readers see the whole file or none; writers of several nodes may overtake each other."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
