"""Where the tokens lie: the standard library's sources as bytes, or the user's own files."""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.config.data_files import unreadable
from launcher.config.schema import Data
from launcher.data.megatron import open_megatron
from launcher.data.store import StoreWriter, open_store
from launcher.data.store_info import STORE_FILE, StoreInfo, TokenizerInfo, Unreadable
from launcher.data.text import Text, map_tokens, whole_text
from launcher.errors import ConfigError

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3",
     "turtledemo", "ensurepip", "__pycache__"}
)  # fmt: skip
SEPARATOR = b"\0"
"""Ends every document; no Python source may hold this byte."""
_BYTES = TokenizerInfo(
    name="byte",
    sha256=hashlib.sha256(b"stdlib_text").hexdigest(),
    vocab_size=256,
    end_token=SEPARATOR[0],
)


@dataclass(frozen=True, kw_only=True)
class OpenText:
    """One text of a run."""

    field: str
    """The key that names it."""
    text: Text
    weight: float
    store: StoreInfo | None
    """None: nothing is known of its vocabulary."""


def open_texts(
    data: Data, folder: Path, writes: bool, barrier: Callable[[], None]
) -> tuple[OpenText, ...]:
    """The texts of a run, one unless it is a mixture, as memory maps.

    `folder` takes what is made for this run; `writes` is set on one rank per node, and `barrier`
    waits for all ranks. Raises ConfigError.
    """
    if data.kind == "stdlib_text":
        return (_open_stdlib(folder, writes, barrier),)
    if data.kind != "mixture":
        assert data.path is not None, "a rule of the configuration refuses this"
        return (_open("data.path", data.kind, data.path, data.dtype, 1.0),)
    return tuple(
        _open(f"data.sources.{number}.path", source.kind, source.path, source.dtype, source.weight)
        for number, source in enumerate(data.sources)
    )


def stdlib_documents() -> Iterator[bytes]:
    """Sources of this Python's standard library with their separator, in the order of paths."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        yield path.read_bytes() + SEPARATOR


def _open(field: str, kind: str, path: str, dtype: str, weight: float) -> OpenText:
    store = None
    try:
        if kind == "store":
            store, text = open_store(Path(path))
        elif kind == "megatron":
            text = open_megatron(path)
        else:
            text = _open_tokens(Path(path), dtype)
    except Unreadable as error:
        raise ConfigError([unreadable(field, kind, path, str(error))]) from None
    return OpenText(field=field, text=text, weight=weight, store=store)


def _open_tokens(path: Path, dtype: str) -> Text:
    if not path.is_file():
        raise Unreadable("no such file")
    size, width = path.stat().st_size, np.dtype(dtype).itemsize
    if size == 0 or size % width:
        raise Unreadable(f"{size} bytes are no whole number of {dtype} tokens")
    return whole_text(map_tokens(path, dtype), borders=None)


def _open_stdlib(folder: Path, writes: bool, barrier: Callable[[], None]) -> OpenText:
    """The store of this run; whichever node writes it first wins."""
    store = folder / "stdlib_text"
    if writes and not (store / STORE_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=store.name))
        writer = StoreWriter(folder=partial, tokenizer=_BYTES)
        for document in stdlib_documents():
            tokens = np.frombuffer(document, np.uint8)
            lengths, largest = np.array([len(tokens)], np.uint64), int(tokens.max())
            writer.append([tokens.astype("<u2").tobytes()], lengths, largest)
        writer.finish()
        try:
            partial.rename(store)
        except OSError:
            shutil.rmtree(partial)  # Another node was faster.
    barrier()
    info, text = open_store(store)
    return OpenText(field="data.kind", text=text, weight=1.0, store=info)
