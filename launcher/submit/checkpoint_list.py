"""`launch checkpoints`: what a run has saved, for people and programs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.diff import CheckpointDiff
from launcher.checkpoint.manifest import Malformed, read_manifest
from launcher.checkpoint.publish import PERMANENT, read_latest
from launcher.checkpoint.reader import (
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    step_of,
    verify,
)
from launcher.errors import ConfigError, Finding
from launcher.plan.run_files import RunFiles
from launcher.submit.start_point import wrong_size

_AXES = ("tp", "cp", "ep", "pp", "vpp", "dp")
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One checkpoint of a run."""

    name: str
    step: int
    saved_at: float | None = None
    """Seconds since the epoch."""
    bytes: int | None = None
    consumed_samples: int | None = None
    layout: dict[str, Any] | None = None
    is_latest: bool = False
    is_permanent: bool = False
    """Kept for good."""
    is_verified: bool | None = None
    """Whether all bytes match their checksums; None: not looked at."""
    reason: str | None = None
    """Why it cannot be used."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def describe_checkpoints(files: RunFiles, is_verified: bool) -> list[Listed]:
    """All published checkpoints, oldest first; their bytes are read where they are to be verified.

    Without that, a manifest that is no manifest and files of a wrong size are still found.
    """
    latest = read_latest(files.checkpoints)
    names = reversed(list_checkpoints(files.checkpoints))
    return [_describe(files.checkpoints / name, name == latest, is_verified) for name in names]


def _describe(folder: Path, is_latest: bool, is_verified: bool) -> Listed:
    try:
        manifest = read_manifest(folder)
    except Malformed as error:
        return Listed(
            name=folder.name,
            step=step_of(folder.name),
            is_latest=is_latest,
            is_verified=False,
            reason=f"manifest.json: {error}",
        )
    reason = verify(folder) if is_verified else wrong_size(folder, manifest)
    return Listed(
        name=folder.name,
        step=manifest.step,
        saved_at=manifest.saved_at,
        bytes=manifest.total_bytes,
        consumed_samples=manifest.consumed_samples,
        layout=dict(manifest.layout),
        is_latest=is_latest,
        is_permanent=(folder / PERMANENT).exists(),
        is_verified=False if reason else True if is_verified else None,
        reason=reason,
    )


def list_refused(files: RunFiles) -> list[tuple[str, str]]:
    """Folders that a job has set aside because they did not verify, with its reasons."""
    found = []
    for folder in sorted(files.checkpoints.glob("refused_*")):
        try:
            reason = (folder / "refused.txt").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            reason = "no reason is left"
        found.append((folder.name, reason))
    return found


def render_checkpoints(files: RunFiles, found: list[Listed], refused: list[tuple[str, str]]) -> str:
    """A line per checkpoint, aligned, and one for each that was set aside."""
    aside = [f"set aside: {name}  {reason}" for name, reason in refused]
    if not found:
        return "\n".join([f"no checkpoints in {files.checkpoints}", *aside])
    lines = [f"{'step':>10}  {'saved':19}  {'size':>10}  {'layout':28}  state"]
    for one in found:
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.saved_at or 0))
        lines.append(
            f"{one.step:>10,}  {saved if one.saved_at else '-':19}  {_size(one.bytes):>10}  "
            f"{_layout_words(one.layout):28}  {_state(one)}"
        )
    return "\n".join([*lines, *aside])


def open_checkpoint(files: RunFiles, word: str) -> Checkpoint:
    """By step, folder name, `latest` or the path of a checkpoint of any run; ConfigError else."""
    names = list_checkpoints(files.checkpoints)
    folder = Path(word).expanduser()
    if word == "latest":
        name = read_latest(files.checkpoints) or (names[0] if names else word)
    else:
        name = checkpoint_name(int(word)) if word.isdecimal() else word
    if name in names:
        folder = files.checkpoints / name
    elif not (folder / "manifest.json").is_file():
        raise ConfigError([_no_such_checkpoint(word, names)])
    try:
        return Checkpoint(folder)
    except Malformed as error:
        reason = f"manifest.json: {error}"
        raise ConfigError(
            [Finding(field="--diff", value=word, rule="checkpoint-readable", reason=reason)]
        ) from error


def render_diff(result: CheckpointDiff) -> str:
    """The largest differences, then the count."""
    lines = [f"{result.one}  step {result.steps[0]}", f"{result.other}  step {result.steps[1]}", ""]
    if result.different:
        lines.append(f"{'max abs':>10}{'relative L2':>13}  tensor")
    lines += [
        f"{entry.max_abs:>10.2e}{entry.relative:>13.2e}  {entry.name}"
        for entry in result.different[:_SHOWN]
    ]
    if len(result.different) > _SHOWN:
        lines.append(f"  ... and {len(result.different) - _SHOWN} more; --json lists all")
    for title, names in (
        ("only in the first", result.only_one),
        ("only in the second", result.only_other),
        ("of another shape", result.reshaped),
    ):
        lines += [f"{title}: {name}" for name in names[:_SHOWN]]
        if len(names) > _SHOWN:
            lines.append(f"{title}: ... and {len(names) - _SHOWN} more")
    verdict = f"{len(result.different)} of {result.num_tensors} tensors differ"
    lines.append("equal, bit by bit" if result.is_equal else verdict)
    return "\n".join(lines)


def _no_such_checkpoint(word: str, names: list[str]) -> Finding:
    steps = [step_of(name) for name in names]
    return Finding(
        field="--diff",
        value=word,
        rule="no-such-checkpoint",
        reason="the run has no such checkpoint",
        legal=[*sorted(steps)[:_SHOWN], *(["latest"] if steps else [])],
        fix=f"--diff {min(steps)} {max(steps)}" if len(steps) > 1 else "",
    )


def _layout_words(layout: dict[str, Any] | None) -> str:
    """tp2 pp2 dp1 ZeRO-1"""
    if not layout:
        return "-"
    degrees = [f"{axis}{layout.get(axis, 1)}" for axis in _AXES if layout.get(axis, 1) != 1]
    return " ".join([*(degrees or ["1 process"]), f"ZeRO-{layout.get('zero_stage', 0)}"])


def _state(one: Listed) -> str:
    if one.reason:
        return f"BROKEN: {one.reason}"
    words = ["verified"] if one.is_verified else []
    words += ["latest"] if one.is_latest else []
    return ", ".join([*words, "kept for good"] if one.is_permanent else words)


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
