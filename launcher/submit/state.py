"""In which state a run is: from its files, its locks and, for Slurm jobs, from the queue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.lock import holder_of
from launcher.node.records import Start, list_starts, read_record
from launcher.plan.run_files import RunFiles
from launcher.submit.queue import Answer, QueueJob, ask_queue
from launcher.submit.steps_done import StepsDone
from launcher.submit.summary import read_outcome
from launcher.submit.waiting import say_waiting

_CLOCKS_S = 300.0
"""Clocks of two machines of one cluster may differ by so much: munge allows no more."""
_FRESH_S = 120.0
"""Metrics younger than this, or than three steps, were written by a job that is alive."""
# How a Slurm job can end without having written its own end; squeue(1), job state codes.
_ENDS = {
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "the batch script failed before it could say why; its log may tell",
    "NODE_FAIL": "a node failed, and the job was not allowed to start again",
    "OUT_OF_MEMORY": "it took more memory than it had asked for",
    "PREEMPTED": "another job took its place",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "its time limit ended it before it had saved and gone",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """One of the words below, and why."""

    word: str
    """new, queued, starting, running, requeued, done, stopped, cancelled, failed, lost, unknown."""
    why: str = ""
    kind: str = "local"
    """What started the job: local, slurm, torchrun or mpirun."""
    job_id: str | None = None
    queue: QueueJob | None = None
    """What Slurm says, where it was asked and knows the job."""
    problem: str = ""
    """Why Slurm could not be asked."""
    cause: str = ""
    """Kind of the cause (failure/causes.py, or time_limit), where the end itself tells one."""


def read_state(files: RunFiles, steps: StepsDone, answer: Answer | None = None) -> State:
    """State of a run; `answer` is what Slurm said where it was asked already."""
    submitted = read_record(files.submitted) or {}
    kind = str(submitted.get("kind", "local"))
    job_id = slurm_id(submitted)
    if kind != "slurm" or job_id is None:
        return _state_here(files, steps, kind)
    starts = own_starts(files, submitted)
    job_id, answer = _current_job(submitted, job_id, answer)
    state = _slurm_state(files, steps, starts, job_id, answer)
    return State(
        word=state.word,
        why=state.why,
        kind=kind,
        job_id=job_id,
        queue=state.queue,
        problem=answer.problem,
        cause=state.cause,
    )


def slurm_id(submitted: dict[str, Any]) -> str | None:
    """The job as Slurm's commands take it: 12, or 12_3 for a task of an array."""
    job_id, task = submitted.get("job_id"), submitted.get("array_task")
    if not isinstance(job_id, (str, int)) or isinstance(job_id, bool) or job_id == "":
        return None
    return str(job_id) if task is None else f"{job_id}_{task}"


def follow_ups(submitted: dict[str, Any]) -> list[str]:
    """Ids of jobs that were submitted behind the first."""
    found = submitted.get("follow_up") or []
    return [str(one) for one in (found if isinstance(found, list) else [found])]


def own_starts(files: RunFiles, submitted: dict[str, Any]) -> list[Start]:
    """Starts of the job that is on record; a run that was resumed has those of earlier jobs, too.

    A task of an array runs under an id of its own, so its starts are known by their time.
    """
    ids = {str(submitted.get("job_id")), *follow_ups(submitted)}
    since = submitted.get("submitted_at")
    is_task = submitted.get("array_task") is not None and isinstance(since, (int, float))

    def is_own(start: Start) -> bool:
        began = start.nodes.get("started_at")
        is_later = is_task and isinstance(began, (int, float)) and began >= since - _CLOCKS_S
        return start.job_id in ids or is_later

    return [start for start in list_starts(files) if is_own(start)]


def _current_job(
    submitted: dict[str, Any], job_id: str, answer: Answer | None
) -> tuple[str, Answer]:
    """Of a job and those submitted behind it: the first one that has not ended."""
    answer = answer or ask_queue(job_id)
    first = job_id, answer
    for other in follow_ups(submitted):
        job = _only(answer)
        if answer.problem or (job is not None and (job.is_running or job.is_waiting)):
            return job_id, answer
        behind = ask_queue(other)
        if (job := _only(behind)) is not None and (job.is_running or job.is_waiting):
            return other, behind
        if job is not None and job.start is not None and job.state != "CANCELLED":
            first = other, behind  # It has run: its end counts.
    return first


def _only(answer: Answer) -> QueueJob | None:
    return answer.jobs[0] if answer.jobs else None


# A job on this machine, or one that a command here started by ssh or mpirun.


def _state_here(files: RunFiles, steps: StepsDone, kind: str) -> State:
    outcome = read_outcome(files)
    status, error = outcome.get("status"), str(outcome.get("error") or "")
    if holder_of(files.job_lock) is not None:
        return State(word="running" if steps.last_at else "starting", kind=kind)
    if holder := holder_of(files.launch_lock):
        return State(word="starting", why=f"{holder} starts it", kind=kind)
    if status == "done":
        return State(word="done", kind=kind)
    if status in ("stopped", "interrupted"):
        is_cancelled = files.cancelled.exists()
        why = "it was interrupted" if status == "interrupted" else "it was asked to end"
        return State(word="cancelled" if is_cancelled else "stopped", why=why, kind=kind)
    if status == "failed":
        return State(word="failed", why=error.splitlines()[0] if error else "", kind=kind)
    if files.cancelled.exists():
        return State(word="cancelled", kind=kind)
    if kind != "local" and _is_fresh(steps):
        # Locks of another host need not be seen here.
        return State(word="running", kind=kind)
    if any(files.logs.glob("rank_*.error.json")):
        return State(word="failed", why="a rank failed, and nobody followed the run", kind=kind)
    if steps.last_at is None and not any(files.logs.glob("*.log")):
        return State(word="new", why="nothing has been started in it", kind=kind)
    why = "its processes are gone without a word: killed, or the machine went down"
    return State(word="lost", why=why, kind=kind)


def _is_fresh(steps: StepsDone) -> bool:
    limit_s = max(_FRESH_S, 3 * (steps.step_s or 0.0))
    return steps.last_at is not None and time.time() - steps.last_at < limit_s


# A job of Slurm's.


def _slurm_state(
    files: RunFiles, steps: StepsDone, starts: list[Start], job_id: str, answer: Answer
) -> State:
    job = _only(answer)
    last = starts[-1] if starts else None
    end = (last.end if last else None) or {}
    if job is not None and job.is_waiting:
        word = "requeued" if starts else "queued"
        return State(word=word, why=_join(_why(end), say_waiting(job)), queue=job)
    if job is not None and job.is_running and not end:
        return State(word=_running_word(last, steps), queue=job)
    if job is not None and job.is_running and end.get("status") == "requeued":
        return State(word="requeued", why=_why(end), queue=job)
    if end and end.get("status") != "requeued":
        return State(word=_word(end), why=_why(end), queue=job, cause=_cause(end))
    if job is not None:
        return _ended_without_a_word(files, end, job)
    if answer.problem and last is not None and not end and _is_fresh(steps):
        return State(word="running", why="as its metrics show")
    if answer.problem:
        return State(word="unknown", why="Slurm cannot be asked, and the job has not said its end")
    return _forgotten(files, last, end)


def _running_word(last: Start | None, steps: StepsDone) -> str:
    """Whether the present start has done a step: metrics are younger than it."""
    began = last.nodes.get("started_at") if last else None
    if not isinstance(began, (int, float)) or steps.last_at is None:
        return "starting"
    return "running" if steps.last_at >= began else "starting"


def _ended_without_a_word(files: RunFiles, end: dict[str, Any], job: QueueJob) -> State:
    """A job that Slurm knows the end of, and that could not write it down."""
    if job.state == "CANCELLED":
        by = f" {job.reason}" if job.reason.startswith("by ") else ""
        why = f"scancel ended it{by}" if not files.cancelled.exists() else ""
        return State(word="cancelled", why=_join(why, _why(end)), queue=job)
    outcome = read_outcome(files).get("status")
    if job.state == "COMPLETED" and outcome in ("done", "stopped"):
        return State(word=str(outcome), queue=job)
    if files.cancelled.exists():
        return State(word="cancelled", why=_why(end), queue=job)
    causes = {
        "TIMEOUT": "time_limit",
        "OUT_OF_MEMORY": "host_out_of_memory",
        "NODE_FAIL": "bad_node",
        "BOOT_FAIL": "bad_node",
    }
    why = _ENDS.get(job.state, "the job ended and did not say how")
    why = f"{why} (Slurm: {job.state})"
    return State(word="failed", why=why, queue=job, cause=causes.get(job.state, ""))


def _forgotten(files: RunFiles, last: Start | None, end: dict[str, Any]) -> State:
    """A job that Slurm does not know any more, and that has not said that it is over."""
    outcome = read_outcome(files).get("status")
    if files.cancelled.exists():
        return State(word="cancelled", why=_why(end))
    if outcome == "done":
        return State(word="done")
    if last is None:
        why = "it left the queue before it started: cancelled, or never accepted by a node"
    elif end:
        why = _join(_why(end), "it then left the queue while it waited to go on")
    else:
        why = "it left the queue without a word: cancelled, or one of its nodes was lost"
    return State(word="lost", why=why)


def _word(end: dict[str, Any]) -> str:
    if end.get("reason") == "cancelled":
        return "cancelled"
    status = str(end.get("status"))
    return status if status in ("done", "stopped", "failed") else "unknown"


def _why(end: dict[str, Any]) -> str:
    why = str(end.get("why") or "")
    return why or str(end.get("reason") or "").replace("_", " ").replace("finished", "")


def _cause(end: dict[str, Any]) -> str:
    """Kind of the cause that the end's reason names by itself."""
    causes = {"time_limit": "time_limit", "bad_node": "bad_node", "hang": "hang"}
    causes |= {"port": "port_taken", "configuration": "configuration", "node_failure": "bad_node"}
    return causes.get(str(end.get("reason")), "")


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
