"""What Slurm says of a job: squeue first, then accounting, where a site has it, for the past.

Asked with %s as the format of times, so that every time is seconds since the epoch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_PATIENCE_S = 30.0
_UNKNOWN_JOB = "invalid job id"
# squeue(1), --format. Only the last ones hold text that a user has chosen.
_FIELDS = ("%F", "%K", "%A", "%T", "%r", "%S", "%e", "%L", "%u", "%N", "%o")
_ACCOUNTED = "JobID,State,Start,End,User,NodeList"
# sacct and squeue have the same words for the state of a job (squeue(1), job state codes).
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
RUNNING = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
    | {"RESIZING"}
)


@dataclass(frozen=True, kw_only=True)
class QueueJob:
    """One job, or one task of a job array, as Slurm sees it."""

    job_id: str
    """As commands take it: 12, or 12_3 for a task of an array."""
    state: str
    """Slurm's word, e.g. PENDING."""
    reason: str = ""
    """Why it waits, in Slurm's word, or empty."""
    start: float | None = None
    """When it started, or is expected to; seconds since the epoch, None where unknown."""
    end: float | None = None
    """When it ended, or its time limit ends it."""
    time_left: str = ""
    """Until the time limit, as Slurm writes it."""
    user: str = ""
    nodes: str = ""
    """Slurm's list, e.g. n[1-4]."""
    script: str = ""
    """Path of the script that was submitted; empty where unknown."""

    @property
    def is_waiting(self) -> bool:
        """In the queue, not on any node."""
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        """On nodes: starting, computing or ending."""
        return self.state in RUNNING


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What Slurm knows of one job id."""

    jobs: tuple[QueueJob, ...] = ()
    """The job; of an array, its tasks. Empty: Slurm does not know it (any more)."""
    problem: str = ""
    """Why Slurm could not be asked; empty where it could."""


def ask_queue(job_id: str) -> Answer:
    """Everything that Slurm still knows of a job."""
    said = _ask(["squeue", "--noheader", "--array", "--all", "--states=all", f"--jobs={job_id}",
                 "--format=" + "|".join(_FIELDS)])  # fmt: skip
    jobs = tuple(job for line in said.text.splitlines() if (job := _queued(line)))
    if jobs:
        return Answer(jobs=jobs)
    if said.problem and _UNKNOWN_JOB not in said.problem.lower():
        return Answer(problem=said.problem)
    # Some minutes after its end a job leaves squeue. Without accounting nothing is known then.
    past = _ask(["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job_id}",
                 f"--format={_ACCOUNTED}"])  # fmt: skip
    return Answer(jobs=tuple(job for line in past.text.splitlines() if (job := _accounted(line))))


@dataclass(frozen=True, kw_only=True)
class _Said:
    text: str = ""
    problem: str = ""


def _ask(words: Sequence[str]) -> _Said:
    """Standard output of a Slurm command, or why there is none."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        result = subprocess.run(
            words, env=environment, capture_output=True, text=True, errors="replace",
            timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return _Said(problem=f"there is no {words[0]} on this machine")
    except subprocess.TimeoutExpired:
        return _Said(problem=f"{words[0]} did not answer within {_PATIENCE_S:.0f} s")
    except OSError as error:
        return _Said(problem=f"{words[0]}: {error.strerror}")
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return _Said(text=result.stdout, problem=f"{words[0]}: {lines[-1]}")
    return _Said(text=result.stdout)


def _queued(line: str) -> QueueJob | None:
    """A line of squeue; None for one that is torn."""
    words = line.split("|", len(_FIELDS) - 1)
    if len(words) < len(_FIELDS):
        return None
    array, task, own, state, reason, start, end, left, user, nodes, script = words
    return QueueJob(
        job_id=f"{array}_{task}" if task.isdecimal() else own,
        state=state,
        reason="" if reason in ("None", "(null)") else reason,
        start=_epoch(start),
        end=_epoch(end),
        time_left="" if left in ("UNLIMITED", "INVALID", "NOT_SET") else left,
        user=user,
        nodes="" if nodes == "(null)" else nodes,
        script=script,
    )


def _accounted(line: str) -> QueueJob | None:
    """A line of sacct: `CANCELLED by 1000` is a state, too."""
    words = line.split("|", 5)
    if len(words) < 6:
        return None
    job_id, state, start, end, user, nodes = words
    word, _, by = state.partition(" ")
    return QueueJob(
        job_id=job_id,
        state=word.rstrip("+"),  # sacct cuts long words so
        reason=by,
        start=_epoch(start),
        end=_epoch(end),
        user=user,
        nodes="" if nodes in ("None assigned", "Unknown") else nodes,
    )


def _epoch(text: str) -> float | None:
    """Seconds since the epoch; None for NONE, Unknown, N/A and whatever else is no time."""
    return float(text) if text.isdecimal() else None
