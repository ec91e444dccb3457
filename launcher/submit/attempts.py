"""Changes the frozen files of a run that continues, so that nothing is lost at any instant.

    attempts/0001/     files of the first attempt, copied; its summary and errors, moved
    attempts/pending/  the new files, whole, until every one of them is in its place

The new files appear under `pending` by one rename. From then on the change is decided: a command
that was cut off is completed by the next one (`complete_pending`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from launcher.errors import SubmissionRefused
from launcher.plan.run_files import RunFiles
from launcher.render.bundle import Bundle
from launcher.submit.write import write_text


def complete_pending(files: RunFiles) -> None:
    """Finish a change of the frozen files that was cut off, if there is one."""
    if not files.pending.is_dir():
        return
    # The script last: while it is pending, it says which of the two belongs to the new attempt.
    scripts = (files.command.name, files.job.name)
    paths = sorted(files.pending.iterdir(), key=lambda path: (path.name in scripts, path.name))
    for script in scripts if any(path.name in scripts for path in paths) else ():
        if not (files.pending / script).exists():
            (files.root / script).unlink(missing_ok=True)
    for path in paths:
        path.replace(files.root / path.name)
    files.pending.rmdir()
    _flush(files.root)


def change_frozen(bundle: Bundle, record: str, first_step: int, aside: Iterable[Path] = ()) -> int:
    """Put a new bundle in the place of the frozen files; the number of the attempt that is over.

    Args:
        bundle: the new files.
        record: what becomes resume.json.
        first_step: where the new attempt begins; metrics from there on are put aside.
        aside: files and folders to move to the attempt that is over.

    Raises SubmissionRefused where the run directory cannot be written.

    """
    files = bundle.files
    try:
        number = _archive(files)
        over = [files.summary, files.submitted, files.cancelled]
        over += [*files.logs.glob("rank_*.error.json"), *files.logs.glob("hang_*.txt"), *aside]
        _move(files.attempt(number), over)
        files.checkpoints.mkdir(exist_ok=True)
        _cut_metrics(files, first_step, files.attempt(number))
        _prepare(files, {**bundle.texts, files.resume: record}, bundle.script)
        complete_pending(files)
    except OSError as error:
        raise SubmissionRefused(
            f"{files.root} [run-dir-not-writable]: {error.strerror}; the run is as it was. "
            "Try again when the directory can be written."
        ) from error
    return number


def num_attempts(files: RunFiles) -> int:
    """Attempts that are over and were resumed."""
    number = 0
    while files.attempt(number + 1).exists():
        number += 1
    return number


def _archive(files: RunFiles) -> int:
    """Copy the present frozen files to the folder of the attempt that is over."""
    number = num_attempts(files) + 1
    partial = files.attempts / f".{number:04d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = (
        files.run,
        files.plan,
        files.deepspeed,
        files.command,
        files.job,
        files.resume,
        files.submitted,
        files.code,
        files.code_patch,
    )
    for path in names:
        if path.exists():
            shutil.copy2(path, partial / path.name)
            _flush(partial / path.name)
    _flush(partial)
    partial.rename(files.attempt(number))
    _flush(files.attempts)
    return number


def _move(folder: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            path.rename(folder / path.name)


def _prepare(files: RunFiles, texts: dict[Path, str], script: Path) -> None:
    partial = files.attempts / ".pending.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path, text in texts.items():
        write_text(partial / path.name, text)
    (partial / script.name).chmod(0o755)
    _flush(partial)
    partial.rename(files.pending)
    _flush(files.attempts)


def _cut_metrics(files: RunFiles, first_step: int, folder: Path) -> None:
    """Keep the lines before a step; those from it on, which will come again, go to the folder."""
    if not files.metrics.exists():
        return
    content = files.metrics.read_bytes()
    size = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or _step(line) >= first_step:
            break
        size += len(line)
    if size < len(content):
        (folder / files.metrics.name).write_bytes(content[size:])
        _flush(folder / files.metrics.name)
        os.truncate(files.metrics, size)


def _step(line: bytes) -> float:
    """Of an entry; what is torn belongs to no step that was saved."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some file systems cannot flush folders.
            os.fsync(handle)
    finally:
        os.close(handle)
