"""`launch cancel`: a job is asked to save and end, or ended at once; it does not start again."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time

from launcher.checkpoint.lock import Holder, holder_of
from launcher.checkpoint.reader import list_checkpoints
from launcher.errors import Finding, RunFailed, SubmissionRefused
from launcher.node.hosts import PLAIN
from launcher.node.records import Start, list_starts, read_record, write_record
from launcher.plan.run_files import RunFiles
from launcher.submit.queue import Answer, QueueJob, ask_queue
from launcher.submit.state import follow_ups, own_starts, slurm_id

_POLL_S = 0.2
_SLURM_POLL_S = 2.0
_PATIENCE_S = 60.0


def cancel(files: RunFiles, timeout_s: float, at_once: bool) -> str:
    """End the job of a run; what came of it, as a sentence.

    Raises SubmissionRefused where no job runs or it is not ours to end, and RunFailed where it
    has not ended within `timeout_s`.
    """
    submitted = read_record(files.submitted) or {}
    job_id = slurm_id(submitted)
    if submitted.get("kind") == "slurm" and job_id is not None:
        return _cancel_slurm(files, [job_id, *follow_ups(submitted)], timeout_s, at_once)
    if submitted.get("kind") in PLAIN and (starts := own_starts(files, submitted)):
        return _cancel_hosts(files, starts[-1], timeout_s, at_once)
    return _cancel_here(files, timeout_s, at_once)


def _note(files: RunFiles, at_once: bool = False) -> None:
    """On record before the job ends: whoever looks at its end must know that it was meant."""
    document = {"at": time.time(), "by": f"{_user()}@{socket.gethostname()}", "now": at_once}
    try:
        write_record(files.cancelled, document)
    except OSError as error:
        raise SubmissionRefused(
            _finding(files, "run-dir-not-writable", f"{error.strerror}; the job goes on")
        ) from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # No such entry in the password file of a container.
        return str(os.getuid())


def _finding(files: RunFiles, rule: str, reason: str, fix: str = "") -> str:
    return str(Finding(field=str(files.root), rule=rule, reason=reason, fix=fix))


# Here.


def _cancel_here(files: RunFiles, timeout_s: float, at_once: bool) -> str:
    holder = holder_of(files.launch_lock) or holder_of(files.job_lock)
    if holder is None:
        raise SubmissionRefused(
            _finding(files, "not-running", "no job runs in it", f"launch status {files.root}")
        )
    if holder.pid is None or holder.host != socket.gethostname():
        raise SubmissionRefused(
            _finding(
                files,
                "other-host",
                f"{holder} runs it, and processes can be ended on their own machine only",
                f"launch cancel {files.root} on {holder.host or 'that host'}",
            )
        )
    _note(files)
    _signal(files, holder, signal.SIGINT if at_once else signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while holder_of(files.launch_lock) or holder_of(files.job_lock):
        if time.monotonic() > deadline:
            raise RunFailed(
                f"it has not ended within {timeout_s:g} s; it is still saving, or hangs. "
                f"Try launch cancel {files.root} --now"
            )
        time.sleep(_POLL_S)
    return f"cancelled; {_saved(files)}"


def _signal(files: RunFiles, holder: Holder, number: signal.Signals) -> None:
    assert holder.pid is not None
    if number is signal.SIGINT and holder_of(files.launch_lock) is None:
        number = signal.SIGKILL  # A worker without a launcher: nobody else hears the wish.
    try:
        os.kill(holder.pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        files.cancelled.unlink(missing_ok=True)
        raise SubmissionRefused(
            _finding(files, "not-yours", f"{holder} belongs to another user")
        ) from error


# On plain hosts: every agent looks for the note.


def _cancel_hosts(files: RunFiles, start: Start, timeout_s: float, at_once: bool) -> str:
    if start.end is not None:
        raise SubmissionRefused(
            _finding(files, "not-running", "no job runs in it", f"launch status {files.root}")
        )
    _note(files, at_once)
    deadline = time.monotonic() + timeout_s
    while start.end is None:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"its first host has not ended it within {timeout_s:g} s; it is still saving, "
                f"hangs, or is gone. Try launch cancel {files.root} --now"
            )
        time.sleep(_POLL_S)
    return f"cancelled; {_saved(files)}"


# In Slurm's queue.


def _cancel_slurm(files: RunFiles, ids: list[str], timeout_s: float, at_once: bool) -> str:
    answers = {job_id: ask_queue(job_id) for job_id in ids}
    if problem := next((a.problem for a in answers.values() if a.problem), ""):
        raise SubmissionRefused(
            _finding(files, "slurm-does-not-answer", problem, "again where Slurm can be asked")
        )
    live = [job for answer in answers.values() for job in answer.jobs if _is_live(job)]
    if not live:
        raise SubmissionRefused(
            _finding(
                files,
                "not-running",
                f"job {ids[0]} is not in the queue and does not run",
                f"launch status {files.root}",
            )
        )
    _note(files)
    # Those that wait first: a job that follows another must not start when that one ends.
    for job in sorted(live, key=lambda job: job.is_running):
        is_asked = job.is_running and not at_once and _has_begun(files)
        _scancel(files, job, ["--batch", "--signal=USR1"] if is_asked else [])
    deadline = time.monotonic() + timeout_s
    while running := [job.job_id for job in live if _still_there(job)]:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"job {', '.join(running)} has not ended within {timeout_s:g} s; it is still "
                f"saving, or hangs. Try launch cancel {files.root} --now"
            )
        time.sleep(min(_SLURM_POLL_S, max(_POLL_S, timeout_s / 20)))
    return f"cancelled job {', '.join(job.job_id for job in live)}; {_saved(files)}"


def _is_live(job: QueueJob) -> bool:
    return job.is_waiting or job.is_running


def _has_begun(files: RunFiles) -> bool:
    """Whether the job has come so far that it hears a request; before, nothing is to be saved."""
    return any(start.end is None for start in list_starts(files))


def _still_there(job: QueueJob) -> bool:
    answer: Answer = ask_queue(job.job_id)
    return bool(answer.problem) or any(_is_live(one) for one in answer.jobs)


def _scancel(files: RunFiles, job: QueueJob, options: list[str]) -> None:
    try:
        result = subprocess.run(
            ["scancel", *options, job.job_id], capture_output=True, text=True, errors="replace",
            timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = result.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    # scancel answers 0 for jobs that it did not find; what it says is what counts.
    if said and "already completing" not in said.lower():
        files.cancelled.unlink(missing_ok=True)
        reason = f"scancel {job.job_id}: {said.splitlines()[-1]}"
        if "permission" in said.lower():
            reason += f"; the job belongs to {job.user or 'another user'}"
        raise SubmissionRefused(_finding(files, "scancel-refused", reason))


def _saved(files: RunFiles) -> str:
    saved = list_checkpoints(files.checkpoints)
    if not saved:
        return "nothing was saved"
    return f"the newest checkpoint is {saved[0]}; `launch resume {files.root}` continues"
