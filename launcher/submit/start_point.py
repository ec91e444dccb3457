"""Where a resumed run goes on: the newest checkpoint that verifies, or an error with a way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.manifest import Malformed, Manifest, read_manifest
from launcher.checkpoint.reader import list_checkpoints, verify
from launcher.errors import ConfigError, Finding
from launcher.plan.run_files import RunFiles

_READ_LIMIT = 16 * 2**30
"""Bytes that are read on this machine to compare checksums; of larger checkpoints only the sizes
are looked at here, and the ranks, which share the reading, verify the rest."""


@dataclass(frozen=True, kw_only=True)
class StartPoint:
    """What a resumed run continues from."""

    step: int
    """Optimizer steps done."""
    name: str | None = None
    """Of the checkpoint; None: from the beginning."""
    refused: tuple[tuple[str, str], ...] = ()
    """Newer checkpoints that do not verify, with the reason."""


def find_start(files: RunFiles, from_scratch: bool) -> StartPoint:
    """The newest checkpoint that verifies.

    Raises ConfigError where there is none, unless the run is to start from scratch.
    """
    if from_scratch:
        return StartPoint(step=0)
    refused = []
    for name in list_checkpoints(files.checkpoints):
        reason = _reason_against(files.checkpoints / name)
        if reason is None:
            step = read_manifest(files.checkpoints / name).step
            return StartPoint(step=step, name=name, refused=tuple(refused))
        refused.append((name, reason))
    raise ConfigError([_nothing_usable(files, refused)])


def _reason_against(folder: Path) -> str | None:
    try:
        manifest = read_manifest(folder)
    except Malformed as error:
        return f"manifest.json: {error}"
    return verify(folder) if manifest.total_bytes <= _READ_LIMIT else wrong_size(folder, manifest)


def wrong_size(folder: Path, manifest: Manifest) -> str | None:
    """The first file that is missing or has another size than the manifest says."""
    for name, expected in sorted(manifest.files.items()):
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if size != expected.size:
            return f"{name} has {size} bytes, not {expected.size}"
    return None


def _nothing_usable(files: RunFiles, refused: list[tuple[str, str]]) -> Finding:
    again = f"launch resume {files.root} --from-scratch"
    if refused or files.has_saved.exists():
        found = "; ".join(f"{name}: {reason}" for name, reason in refused) or "there is none"
        return Finding(
            field=str(files.checkpoints),
            rule="no-readable-checkpoint",
            reason=f"the run has saved, and no checkpoint can be used ({found})",
            fix=f"a good copy of a checkpoint in its place, or {again}, which puts the past aside",
        )
    return Finding(
        field=str(files.checkpoints),
        rule="never-saved",
        reason="the run has saved no checkpoint, so there is nothing to continue",
        fix=again,
    )
