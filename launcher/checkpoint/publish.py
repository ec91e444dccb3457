"""Makes a written checkpoint visible by one rename, and removes what is no longer wanted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.checkpoint.files import flush_folder
from launcher.checkpoint.manifest import Manifest, manifest_text
from launcher.checkpoint.reader import checkpoint_name, list_checkpoints

PERMANENT = "permanent"
"""An empty file of this name in a checkpoint keeps it for good."""
LATEST = "latest"


def begin(root: Path, step: int, nonce: str) -> Path:
    """Create the folder in which a checkpoint is written, hidden from every reader."""
    folder = temporary_folder(root, step, nonce)
    folder.mkdir(parents=True)
    return folder


def temporary_folder(root: Path, step: int, nonce: str) -> Path:
    """Where the ranks of one save write; `nonce` tells it from an earlier attempt."""
    return root / f".{checkpoint_name(step)}.{nonce}.tmp"


def publish(
    folder: Path,
    manifest: Manifest,
    permanent: bool = False,
    fault: Callable[[str], None] = lambda point: None,
) -> Path:
    """Complete a folder whose tensor files are flushed, and give it its name; its new path.

    A power cut at any point leaves either no checkpoint of this name or all of it.
    """
    root = folder.parent
    write_durably(folder / "manifest.json", manifest_text(manifest), fault)
    if permanent:
        (folder / PERMANENT).touch()
    flush_folder(folder)
    fault("folder-flushed")
    target = root / checkpoint_name(manifest.step)
    if target.exists():
        # It did not verify, or belongs to a course that was given up: else it would have been used.
        _discard(target)
    fault("before-rename")
    folder.rename(target)
    fault("renamed")
    flush_folder(root)
    fault("published")
    name_latest(root, target.name, fault)
    return target


def name_latest(root: Path, name: str, fault: Callable[[str], None] = lambda point: None) -> None:
    """`set_latest` where there is room for it; else `latest` goes, and readers look themselves."""
    try:
        set_latest(root, name, fault)
    except OSError:
        for path in (root / f".{LATEST}.tmp", root / LATEST):
            with contextlib.suppress(OSError):
                path.unlink()


def set_latest(root: Path, name: str, fault: Callable[[str], None] = lambda point: None) -> None:
    """Let `latest` name a published checkpoint; it changes at once or not at all."""
    partial = root / f".{LATEST}.tmp"
    partial.unlink(missing_ok=True)
    write_durably(partial, name + "\n", fault)
    partial.replace(root / LATEST)
    flush_folder(root)
    fault("latest")


def read_latest(root: Path) -> str | None:
    """The name in `latest`, where that checkpoint is there."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = (root / LATEST).read_text(encoding="utf-8").strip()
        if name in list_checkpoints(root):
            return name
    return None


def prune(root: Path, keep: int | None) -> list[str]:
    """Remove all but the newest `keep` checkpoints and the permanent ones; what was removed."""
    if keep is None:
        return []
    removed = []
    for name in list_checkpoints(root)[keep:]:
        if not (root / name / PERMANENT).exists():
            _discard(root / name)
            removed.append(name)
    return removed


def clean(root: Path) -> None:
    """Remove what interrupted saves and removals have left; no save may be under way."""
    for path in _leftovers(root):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()


def set_aside(root: Path, name: str, reason: str) -> None:
    """Take a checkpoint that does not verify out of the way, with the reason beside its files."""
    number = 1
    while (target := root / f"refused_{name}.{number}").exists():
        number += 1
    (root / name).rename(target)
    with contextlib.suppress(OSError):  # The reason is in the log, too.
        (target / "refused.txt").write_text(reason + "\n", encoding="utf-8")


def write_durably(path: Path, text: str, fault: Callable[[str], None] = lambda point: None) -> None:
    """Write a new file and flush it."""
    with path.open("x", encoding="utf-8") as stream:
        half = len(text) // 2
        stream.write(text[:half])
        stream.flush()
        fault("text-half")
        stream.write(text[half:])
        stream.flush()
        os.fsync(stream.fileno())


def _discard(folder: Path) -> None:
    """First out of sight, then away: a reader never sees half of a removed checkpoint."""
    number = 0
    while (hidden := folder.with_name(f".{folder.name}.{number}.old")).exists():
        number += 1
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _leftovers(root: Path) -> Iterator[Path]:
    for pattern in (".step_*.tmp", ".step_*.old", f".{LATEST}.tmp"):
        yield from root.glob(pattern)
