"""Follows a Slurm job from the queue to its end: its states, its log and the run's progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launcher.errors import RunFailed
from launcher.node.records import list_starts
from launcher.plan.run_files import RunFiles
from launcher.submit.follow import MetricsTail, Progress
from launcher.submit.slurm import Submitted
from launcher.submit.slurm_ask import ask

_ASK_EVERY_S = 3.0
_POLL_S = 0.3
_OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
         "TIMEOUT"}  # fmt: skip


def follow_job(files: RunFiles, job: Submitted, steps: int, first_step: int = 0) -> None:
    """Show a job until the run is over; RunFailed where it did not end well."""
    progress = Progress(steps)
    tail = MetricsTail(files.metrics, first_step)
    logs = _Logs(files.logs)
    watch = _Watch((job.job_id, *job.follow_ups), progress.say)
    try:
        while True:
            is_over = watch.is_over()
            for line in logs.new_lines():
                progress.say(line)
            progress.update(tail.new_entries())
            if is_over:
                break
            time.sleep(_POLL_S)
    finally:
        progress.close()
    if (reason := failure_of(files, watch.states.get(watch.last, ""))) is not None:
        raise RunFailed(reason)


def follow_array(runs: list[RunFiles], job: Submitted) -> None:
    """Say what becomes of every task; RunFailed naming those that did not end well."""
    ids = tuple(f"{job.job_id}_{task}" for task in range(len(runs)))
    watch = _Watch(ids, lambda text: print(text, file=sys.stderr, flush=True))
    while not watch.is_over():
        time.sleep(_POLL_S)
    failed = [
        f"task {task} ({files.root}): {reason}"
        for task, (name, files) in enumerate(zip(ids, runs, strict=True))
        if (reason := failure_of(files, watch.states.get(name, ""))) is not None
    ]
    if failed:
        raise RunFailed("\n".join([f"{len(failed)} of {len(runs)} runs failed", *failed]))


def failure_of(files: RunFiles, state: str) -> str | None:
    """Why a run whose job is over did not end well; None where it did."""
    try:
        outcome = json.loads(files.summary.read_text(encoding="utf-8"))["outcome"]
        if outcome["status"] == "done":
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass  # It ended before it could say.
    starts = list_starts(files)
    end = (starts[-1].end or {}) if starts else {}
    why = end.get("why") or f"its job ended as {state or 'unknown to Slurm'}"
    return f"{why}; logs: {files.logs}"


class _Watch:
    """The states of some jobs, said when they change."""

    def __init__(self, ids: tuple[str, ...], say: Callable[[str], None]) -> None:
        self.states: dict[str, str] = {}
        """Slurm's last word on each job."""
        self.last = ids[-1]
        self._ids, self._say = ids, say
        self._asked_at = 0.0
        self._shown: dict[str, str] = {}

    def is_over(self) -> bool:
        """Whether no job waits or runs any more; Slurm is asked now and then."""
        if time.monotonic() - self._asked_at < _ASK_EVERY_S:
            return False
        self._asked_at = time.monotonic()
        said = ask("squeue", "-h", "-r", "-t", "all", "-j", ",".join(self._ids),
                   "-o", "%i|%T|%r|%S|%N")  # fmt: skip
        if said.code != 0:
            # A job that ended long ago is unknown; anything else passes.
            return "Invalid job id" in said.error
        live = False
        for line in said.out.splitlines():
            name, state, reason, start, nodes = line.split("|", 4)
            live |= state not in _OVER
            self.states[name] = state
            text = _state_words(state, reason, start, nodes)
            if self._shown.get(name) != text:
                self._shown[name] = text
                self._say(f"job {name} {text}")
        return not live


def _state_words(state: str, reason: str, start: str, nodes: str) -> str:
    if state == "PENDING":
        expected = f", expected to start at {start}" if start not in ("N/A", "") else ""
        return f"waits ({reason}){expected}"
    if state == "RUNNING":
        return f"runs on {nodes}"
    return state.lower()


class _Logs:
    """Lines that are added to the logs of a run's jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = {path: path.stat().st_size for path in folder.glob("slurm-*.log")}

    def new_lines(self) -> list[str]:
        """Whole lines only."""
        lines: list[str] = []
        for path in sorted(self._folder.glob("slurm-*.log")):
            with path.open("rb") as stream:
                stream.seek(self._offsets.get(path, 0))
                block = stream.read()
            whole = block[: block.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            lines += whole.decode(errors="replace").splitlines()
        return lines
