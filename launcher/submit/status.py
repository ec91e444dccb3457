"""`launch status`: everything that is known of a run, as one record, as text and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from launcher.config.run_yaml import read_run
from launcher.errors import ConfigError
from launcher.failure.causes import telling_line
from launcher.failure.diagnosis import Diagnosis, diagnose, explain
from launcher.failure.first import Failure, Traces, log_tail, report_of
from launcher.failure.remedies import Remedy, find_remedies
from launcher.node.records import Start, list_starts, read_record
from launcher.plan.run_files import RunFiles
from launcher.submit.queue import Answer
from launcher.submit.state import State, own_starts, read_state
from launcher.submit.steps_done import StepsDone, read_steps

_BAD_ENDS = ("failed", "lost")
_LIVE = ("starting", "running", "requeued", "queued")


@dataclass(frozen=True, kw_only=True)
class StartOfJob:
    """One start of a job, as its own files tell."""

    job_id: str
    restart: int
    started_at: float | None
    nodes: tuple[str, ...]
    first_step: int | None
    last_step: int | None
    status: str
    """done, requeued, stopped, failed, or open where it has not said its end."""
    reason: str
    why: str
    ended_at: float | None
    recovery_s: float | None = None
    """Seconds from the last sign of the start before to this one's first step; None: none yet."""
    bad_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Status:
    """The answer of `launch status` for one run."""

    files: RunFiles
    state: State
    steps: StepsDone
    starts: tuple[StartOfJob, ...]
    """Of all jobs of the run, oldest first."""
    num_requeues: int
    """Starts of the present job after its first one."""
    failure: Diagnosis | None
    """The first failure of the last start; None where it did not fail, or nobody said how."""
    remedies: tuple[Remedy, ...]
    """What to change where the end itself tells; a rank's own are in `failure`."""

    @property
    def is_bad_end(self) -> bool:
        """It ended, not well, and not because somebody asked for it."""
        return self.state.word in _BAD_ENDS

    @property
    def is_live(self) -> bool:
        """It goes on by itself."""
        return self.state.word in _LIVE


def read_status(files: RunFiles, answer: Answer | None = None) -> Status:
    """Look at a run; Slurm is asked where it has the job and `answer` is not given."""
    steps = read_steps(files)
    state = read_state(files, steps, answer)
    everything = list_starts(files)
    starts = own_starts(files, read_record(files.submitted) or {})
    failure = _failure(files, starts) if state.word in _BAD_ENDS else None
    return Status(
        files=files,
        state=state,
        steps=steps,
        starts=tuple(_start(start, everything) for start in everything),
        num_requeues=max(0, len(starts) - 1),
        failure=failure,
        remedies=() if failure and failure.remedies else _remedies(files, state, starts),
    )


def _failure(files: RunFiles, starts: list[Start]) -> Diagnosis | None:
    """What the last start left behind; its own record of the first error where ranks left none."""
    last = starts[-1] if starts else None
    began = last.nodes.get("started_at") if last else None
    logs = sorted(last.files.root.glob("torchrun_*.log")) if last else [files.launcher_log]
    report = report_of(logs)
    since = float(began) if isinstance(began, (int, float)) else 0.0
    found = diagnose(Traces(files=files, report=report, since=since))
    if found is not None:
        return found
    told = _first_error(((last.end if last else None) or {}).get("first_error"))
    if told is not None:
        return explain(told, files)
    return _from_batch_log(files, last) if last else None


def _first_error(record: Any) -> Failure | None:
    try:
        return Failure(
            rank=int(record["rank"]),
            node=str(record["node"]),
            error=str(record["error"]),
            time=0.0,
            is_echo=False,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _from_batch_log(files: RunFiles, last: Start) -> Diagnosis | None:
    """A line of the job's own log that tells a cause: slurmd says there what it had to kill."""
    for path in sorted(files.logs.glob(f"slurm-{last.job_id}*.log")):
        if told := telling_line(log_tail(path)):
            failure = Failure(rank=-1, node="unknown", error=told[0], time=0.0, is_echo=False)
            return explain(failure, files, log=path)
    return None


def _remedies(files: RunFiles, state: State, starts: list[Start]) -> tuple[Remedy, ...]:
    if not state.cause or state.word not in _BAD_ENDS:
        return ()
    bad_nodes = ((starts[-1].end if starts else None) or {}).get("bad_nodes") or []
    node = ",".join(str(one) for one in bad_nodes) if isinstance(bad_nodes, list) else ""
    try:
        return find_remedies(state.cause, read_run(files.run), node)
    except ConfigError:
        return ()


def _start(start: Start, starts: list[Start]) -> StartOfJob:
    nodes, end = start.nodes, start.end
    names = nodes.get("nodes")
    is_over = end is None and start != starts[-1]
    record = end or {}
    if is_over:  # The job went on without it: whoever would have written its end was lost.
        why = "one of its nodes was lost"
        record = {"status": "requeued", "reason": "node_failure", "why": why}
    bad = record.get("bad_nodes")
    return StartOfJob(
        job_id=start.job_id,
        restart=start.restart,
        started_at=_number(nodes.get("started_at")),
        nodes=tuple(str(name) for name in names) if isinstance(names, list) else (),
        first_step=_whole(nodes.get("first_step", record.get("first_step"))),
        last_step=_whole(record.get("last_step")),
        status=str(record.get("status") or "open"),
        reason=str(record.get("reason") or ""),
        why=str(record.get("why") or ""),
        ended_at=_number(record.get("ended_at")),
        recovery_s=_recovery_s(start),
        bad_nodes=tuple(str(name) for name in bad) if isinstance(bad, list) else (),
    )


def _recovery_s(start: Start) -> float | None:
    before = _number(start.nodes.get("last_sign_at"))
    agents = [read_record(path) or {} for path in start.files.root.glob("agent_*.json")]
    steps = [at for agent in agents if (at := _number(agent.get("first_step_at"))) is not None]
    return min(steps) - before if steps and before is not None else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def status_json(status: Status, now: float | None = None) -> dict[str, Any]:
    """One document; times are seconds since the epoch, None is what is not known."""
    state, steps = status.state, status.steps
    now = time.time() if now is None else now
    queue = None if state.queue is None else asdict(state.queue)
    expected = state.queue.start if state.queue is not None and state.queue.is_waiting else None
    return {
        "run_dir": str(status.files.root),
        "kind": state.kind,
        "job_id": state.job_id,
        "state": state.word,
        "why": state.why or None,
        "queue": queue,
        "queue_problem": state.problem or None,
        "expected_start": expected,
        "step": steps.step,
        "total_steps": steps.total_steps,
        "loss": steps.loss,
        "validation_loss": steps.validation_loss,
        "tokens_per_s": steps.tokens_per_s,
        "step_s": steps.step_s,
        "eta_s": steps.eta_s if status.is_live else None,
        "seconds_since_step": None if steps.last_at is None else max(0.0, now - steps.last_at),
        "checkpoint": steps.checkpoint,
        "checkpoint_error": steps.checkpoint_error,
        "num_requeues": status.num_requeues,
        "starts": [asdict(start) | {"nodes": list(start.nodes)} for start in status.starts],
        "failure": status.failure.to_json() if status.failure else None,
        "remedies": [remedy.to_json() for remedy in status.remedies],
        "cancelled": read_record(status.files.cancelled),
    }
