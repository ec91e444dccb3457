"""Saves the state of all ranks: a copy in host memory now, files and one rename in the background.

Each rank writes its own file and tells rank 0 its checksum; rank 0 publishes once all have.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.boxes import Box
from launcher.checkpoint.files import write_file
from launcher.checkpoint.manifest import FileRecord, Manifest, Piece, TensorRecord
from launcher.checkpoint.publish import prune, publish, temporary_folder
from launcher.checkpoint.reader import is_whole
from launcher.config.data_content import data_content
from launcher.config.schema import Run
from launcher.plan.records import Layout
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.board import PATIENCE_S, Board
from launcher.runtime.checkpoint.restore import Start
from launcher.runtime.checkpoint.snapshot import Arena, Part, parts_to_save
from launcher.runtime.engine import Engine
from launcher.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one save ended."""

    step: int
    name: str | None
    """Of the checkpoint; None: it was not written."""
    error: str | None
    stall_s: float
    """Seconds for which training stood still."""
    seconds: float
    """From the first copy to the published checkpoint."""
    num_bytes: int
    """Of all tensor files."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is saved where, and by whom."""

    files: RunFiles
    run: Run
    layout: Layout
    engine: Engine


class Saver:
    """Saves of one run, one at a time; every rank has one and calls it at the same steps."""

    def __init__(
        self,
        target: Target,
        board: Board,
        arena: Arena,
        start: Start,
        fault: Callable[[str], None] = lambda point: None,
    ) -> None:
        """`fault` is for tests that break the saving."""
        self._target, self._board, self._arena, self._fault = target, board, arena, fault
        self._root = target.files.checkpoints
        self._number = start.number
        self._count = 0
        self._thread: threading.Thread | None = None
        self._outcomes: list[Outcome] = []
        self._data = data_content(target.run.data) if self.is_rank_0 else {}
        self._attempt = self._agree_on_attempt()
        self.last_step = start.progress.step if start.name else None
        """Of the newest save that was begun, or of the checkpoint that the run continues."""

    @property
    def is_rank_0(self) -> bool:
        """Whether this rank publishes and reports."""
        return self._board.rank == 0

    def prepare(self) -> None:
        """Take the memory of the copy now, so that the first save does not wait for it."""
        parts = parts_to_save(self._target.engine.state())
        self._arena.reserve(sum(part.values.numel() for part in parts))

    def save(self, progress: Progress, consumed_tokens: int) -> None:
        """Copy the state and begin to write it; waits for the save before.

        Whether it worked is known later: see `outcomes`.
        """
        self.wait()
        started = time.perf_counter()
        parts = parts_to_save(self._target.engine.state())
        memory = self._arena.copy(parts)
        stall_s = time.perf_counter() - started
        self._fault("copied")
        self._count += 1
        self.last_step = progress.step
        job = _Job(
            progress=progress, consumed_tokens=consumed_tokens, parts=parts, memory=memory,
            name=f"{self._attempt}.{self._count}", started=started, stall_s=stall_s,
        )  # fmt: skip
        # A daemon: a rank that fails must not wait for its disk.
        self._thread = threading.Thread(target=self._write, args=(job,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the save that is under way, if any, has ended, on this rank and on rank 0."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def outcomes(self) -> list[Outcome]:
        """Saves that ended since the last call; rank 0 knows of all, the others of their own."""
        ended, self._outcomes = self._outcomes, []
        return ended

    def _agree_on_attempt(self) -> str:
        """A word that no earlier process of this run has used in the names of its folders."""
        name = "attempt"
        if self._board.rank == 0:
            self._board.put(name, f"{time.time_ns():x}")
        return str(self._board.wait([name], PATIENCE_S)[0])

    def _write(self, job: _Job) -> None:
        """The background thread."""
        folder = temporary_folder(self._root, job.progress.step, job.name)
        try:
            message = self._write_file(job, folder)
        except Exception as error:  # whatever it is, training goes on and rank 0 must know
            message = {"error": _words(error)}
        keys = [f"{job.name}.{rank}" for rank in range(self._board.world_size)]
        done = f"{job.name}.done"
        try:
            self._board.put(keys[self._board.rank], message)
            if self._board.rank == 0:
                self._board.put(done, self._finish(job, folder, keys))
            (result,) = self._board.wait([done], 2 * PATIENCE_S)
        except Exception as error:
            result = {"error": _words(error)}
        self._outcomes.append(_outcome(job, result))

    def _write_file(self, job: _Job, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        file = f"rank_{self._board.rank:05d}.safetensors"
        entries = [part.entry for part in job.parts]
        record = write_file(folder / file, entries, [job.memory], self._fault)
        self._fault("file-done")
        return {
            "error": None,
            "file": file,
            **asdict(record),
            "parts": [
                [part.tensor, part.full_shape, part.box.offsets, part.box.sizes, part.key]
                for part in job.parts
            ],
        }

    def _finish(self, job: _Job, folder: Path, keys: Sequence[str]) -> dict[str, Any]:
        """Rank 0: publish if all ranks have written their files; else leave nothing behind."""
        messages = self._board.wait(keys, PATIENCE_S)
        self._board.drop(keys)
        failures = [
            f"rank {rank}: {message['error']}"
            for rank, message in enumerate(messages)
            if message["error"] is not None
        ]
        try:
            if failures:
                raise OSError("; ".join(failures[:4]))
            self._fault("all-files")
            number = self._number + 1
            manifest = self._manifest(job, number, messages)
            _require_whole(manifest)
            kept = self._target.run.checkpoint
            permanent = kept.keep_every is not None and number % kept.keep_every == 0
            path = publish(folder, manifest, permanent, self._fault)
            self._number = number
            self._target.files.has_saved.touch()
            prune(self._root, kept.keep)
            self._fault("pruned")
            return {"error": None, "name": path.name, "bytes": manifest.total_bytes}
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)  # its space may be what is missing
            return {"error": _words(error)}

    def _manifest(self, job: _Job, number: int, messages: Sequence[dict[str, Any]]) -> Manifest:
        target = self._target
        shapes: dict[str, tuple[int, ...]] = {}
        pieces: dict[str, list[Piece]] = {}
        for message in messages:
            for tensor, shape, offsets, sizes, key in message["parts"]:
                shapes[tensor] = tuple(shape)
                box = Box(offsets=tuple(offsets), sizes=tuple(sizes))
                pieces.setdefault(tensor, []).append(Piece(box=box, file=message["file"], key=key))
        return Manifest(
            step=job.progress.step,
            consumed_samples=job.progress.consumed_samples,
            consumed_tokens=job.consumed_tokens,
            number=number,
            saved_at=time.time(),
            seed=target.run.train.seed,
            files={
                message["file"]: FileRecord(size=message["size"], checksum=message["checksum"])
                for message in messages
            },
            tensors={
                tensor: TensorRecord(shape=shapes[tensor], pieces=tuple(held))
                for tensor, held in pieces.items()
            },
            run=target.run.model_dump(mode="json"),
            data=self._data,
            layout=asdict(target.layout) | {"order": list(target.layout.order)},
        )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One save, handed from the training thread to the background."""

    progress: Progress
    consumed_tokens: int
    parts: Sequence[Part]
    memory: memoryview
    name: str
    """Unique among all saves of the run."""
    started: float
    stall_s: float


def _require_whole(manifest: Manifest) -> None:
    """An engine that leaves out or doubles a piece is found before the checkpoint is needed."""
    for name, record in manifest.tensors.items():
        if not is_whole(record):
            raise ValueError(f"the pieces of {name} do not make up the whole tensor")


def _outcome(job: _Job, result: dict[str, Any]) -> Outcome:
    return Outcome(
        step=job.progress.step,
        name=result.get("name"),
        error=result["error"],
        stall_s=job.stall_s,
        seconds=time.perf_counter() - job.started,
        num_bytes=result.get("bytes", 0),
    )


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
