"""Text files to a token store: cut into tasks, worked off by processes, merged, published."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.data.documents import Reading
from launcher.data.inputs import Kind, find_inputs
from launcher.data.parts import BadLine, Part, merge_parts, read_part
from launcher.data.pieces import Task, cut_tasks
from launcher.data.pool import Work, run_tasks
from launcher.data.store import sync_folder, write_atomically
from launcher.data.store_info import FORMAT_VERSION, StoreInfo
from launcher.data.tokenizer import BYTE, Tokenizer, load_tokenizer, tokenizer_file
from launcher.errors import ConfigError, Finding, RunFailed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked for."""

    inputs: tuple[str, ...]
    output: Path
    """The store's folder; must not exist."""
    tokenizer: str = BYTE
    end_token: str | None = None
    kind: Kind | None = None
    """None: by suffix."""
    reading: Reading = field(default_factory=Reading)
    workers: int = 1
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the work is."""

    done_bytes: int
    total_bytes: int
    done_tasks: int
    total_tasks: int
    num_documents: int
    num_tokens: int
    num_bad: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    store: Path
    info: StoreInfo
    bad: tuple[BadLine, ...]
    """The first of them."""
    skipped: tuple[Path, ...]
    num_files: int
    input_bytes: int
    num_kept: int
    """Parts of an earlier attempt that were taken over."""
    seconds: float


def tokenize(job: Job, report: Callable[[Progress], None] = lambda progress: None) -> Outcome:
    """Make a store; an attempt that was killed before goes on where it was.

    Raises ConfigError, RunFailed.
    """
    started = time.monotonic()
    # 1. What there is to do; the same tasks whatever the number of processes.
    _refuse_output(job.output)
    tokenizer = load_tokenizer(job.tokenizer, job.end_token)
    inputs = find_inputs(job.inputs, job.kind)
    tasks = cut_tasks(inputs.files, splits_text=job.reading.text_unit == "line")
    # 2. What an earlier attempt has left.
    output = job.output.absolute()  # `-o .` has a name, too
    folder = output.parent / f".{output.name}.tokenize"
    with _locked(folder):
        _keep_if_same(folder, _fingerprint(job, tasks, tokenizer.info.sha256))
        found = [read_part(folder, task.number) for task in tasks]
        parts = {part.number: part for part in found if part is not None}
        num_kept = len(parts)
        # 3. The rest, in parallel.
        _make_missing(job, tasks, parts, folder, report)
        # 4. One store of all parts, published by one rename.
        ordered = [parts[task.number] for task in tasks]
        bad = tuple(line for part in ordered for line in part.bad)
        _refuse_empty(ordered, bad)
        store, info = _merge(job, ordered, folder, tokenizer)
        _publish(store, output)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(
        store=job.output,
        info=info,
        bad=bad,
        skipped=inputs.skipped,
        num_files=len(inputs.files),
        input_bytes=sum(task.bytes for task in tasks),
        num_kept=num_kept,
        seconds=time.monotonic() - started,
    )


def _make_missing(
    job: Job,
    tasks: list[Task],
    parts: dict[int, Part],
    folder: Path,
    report: Callable[[Progress], None],
) -> None:
    """Add the parts that are not there yet, as they are finished."""
    work = Work(
        folder=folder, tokenizer=job.tokenizer, end_token=job.end_token,
        reading=job.reading, strict=job.strict,
    )  # fmt: skip
    report(_progress(tasks, parts))
    missing = [task for task in tasks if task.number not in parts]
    if job.strict:
        _refuse_bad(list(parts.values()))
    with contextlib.closing(run_tasks(missing, work, job.workers)) as running:
        for part in running:
            if job.strict:
                _refuse_bad([part])
            parts[part.number] = part
            report(_progress(tasks, parts))


def _merge(
    job: Job, parts: list[Part], folder: Path, tokenizer: Tokenizer
) -> tuple[Path, StoreInfo]:
    """A whole store in the folder of the attempt, with the tokenizer beside it."""
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    info = merge_parts(parts, folder, store, tokenizer)
    if isinstance(info, list):
        raise RunFailed(
            f"{len(info)} parts of an earlier attempt were damaged and have been thrown away; "
            "the same command makes them again"
        )
    if job.tokenizer != BYTE:
        shutil.copyfile(tokenizer_file(job.tokenizer), store / "tokenizer.json")
    return store, info


def _progress(tasks: list[Task], parts: dict[int, Part]) -> Progress:
    return Progress(
        done_bytes=sum(task.bytes for task in tasks if task.number in parts),
        total_bytes=sum(task.bytes for task in tasks),
        done_tasks=len(parts),
        total_tasks=len(tasks),
        num_documents=sum(part.num_documents for part in parts.values()),
        num_tokens=sum(part.num_tokens for part in parts.values()),
        num_bad=sum(part.num_bad for part in parts.values()),
    )


def _fingerprint(job: Job, tasks: list[Task], tokenizer_sha256: str) -> str:
    """Everything that decides what the parts hold; another one makes them worthless."""
    paths = sorted({piece.path for task in tasks for piece in task.pieces})
    stats = {path: os.stat(path) for path in paths}
    document: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "tasks": [asdict(task) for task in tasks],
        "files": {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()},
        "tokenizer": tokenizer_sha256,
        "end_token": job.end_token,
        "reading": asdict(job.reading),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _keep_if_same(folder: Path, fingerprint: str) -> None:
    """Forget the parts of another job."""
    mark = folder / "job"
    if mark.is_file() and mark.read_text() == fingerprint:
        return
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(mark, fingerprint)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else makes the same store at the same time; the lock dies with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            [_output(folder.parent, f"cannot be written: {error.strerror}")]
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError([_output(folder, "another `launch tokenize` is at it")]) from None
        yield


def _refuse_output(output: Path) -> None:
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        reason = "it exists already, and a store is never overwritten"
        raise ConfigError([_output(output, reason)])


def _output(output: Path, reason: str) -> Finding:
    return Finding(field="--output", value=str(output), rule="output-free", reason=reason)


def _refuse_bad(parts: list[Part]) -> None:
    for part in parts:
        if part.bad:
            raise RunFailed(f"{part.bad[0]} (--strict). Finished parts are kept.")


def _refuse_empty(parts: list[Part], bad: tuple[BadLine, ...]) -> None:
    if any(part.num_documents for part in parts):
        return
    seen = "".join(f"\n  {line}" for line in bad[:5])
    raise RunFailed(f"not one document was found{':' if seen else ''}{seen}")


def _publish(store: Path, output: Path) -> None:
    sync_folder(store)
    store.replace(output)
    sync_folder(output.parent)
