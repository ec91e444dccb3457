"""A folder that appears whole or not at all: written beside its name, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.checkpoint.files import flush_folder
from launcher.errors import ConfigError, Finding, RunFailed

_SPARE_BYTES = 16 * 2**20
"""For the small files, and for what the file system itself needs."""


def check_destination(path: Path) -> list[Finding]:
    """Why a folder cannot be made here; nothing that exists is ever written to."""
    if os.path.lexists(path):
        reason = "it exists, and nothing is overwritten"
        return [_not_here(path, reason, "another folder")]
    parent = _existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [_not_here(path, f"{parent} cannot be written to")]
    return []


def check_space(path: Path, num_bytes: int) -> list[Finding]:
    """Why what will be written has no room on the disk."""
    free = shutil.disk_usage(_existing_parent(path)).free
    if num_bytes + _SPARE_BYTES > free:
        reason = f"{size_words(num_bytes)} will be written, and {size_words(free)} are free there"
        fix = "a folder on another disk"
        return [Finding(field=str(path), rule="convert-disk-space", reason=reason, fix=fix)]
    return []


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its name at the end, flushed to the disk.

    After an error nothing is left. Raises RunFailed where the disk is full or breaks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.mkdir()
        yield partial
        for folder in [partial, *(each for each in partial.rglob("*") if each.is_dir())]:
            flush_folder(folder)
        if os.path.lexists(path):
            raise ConfigError(check_destination(path))
        partial.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        raise RunFailed(_explain(error, path)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def size_words(num_bytes: int) -> str:
    """A size as people read it: size_words(16_060_522_496) -> 16.06 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} bytes"


def _existing_parent(path: Path) -> Path:
    return next((p for p in path.absolute().parents if os.path.lexists(p)), Path("/"))


def _not_here(path: Path, reason: str, fix: str = "") -> Finding:
    return Finding(field=str(path), rule="convert-destination", reason=reason, fix=fix)


def _explain(error: OSError, path: Path) -> str:
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full"
    return f"{path} [convert-write]: {what}; nothing is left of it. Try a folder on another disk."
