"""What a job asks of Slurm about itself, and has it do."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

_TIMEOUT_S = 60.0
_PATIENCE_S = 300.0
_ASK_AGAIN_S = 5.0
# Slurm's words where the controller is away (slurm_errno.c); any other refusal is an answer.
_SILENCE = ("does not answer", "unable to contact", "timed out", "connection refused")
_FIELD = re.compile(r"(\w[\w/:]*)=(\S*)")


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """A job as the queue sees it."""

    state: str = ""
    """RUNNING, COMPLETING, CANCELLED...; empty where the queue does not answer."""
    restarts: int | None = None
    is_preempted: bool = False
    """It has been told to make room."""
    left_s: float | None = None
    """Seconds until its end, by its time limit or by the notice of a preemption."""
    excluded: tuple[str, ...] = ()
    """Nodes on which it may not run."""


def job_facts(job_id: str) -> JobFacts:
    """Ask the queue; facts are open where it does not answer."""
    shown = _answer("scontrol", "show", "job", "--oneliner", job_id)
    if shown is None:
        return JobFacts()
    fields = dict(_FIELD.findall(shown))
    end = _seconds(fields.get("EndTime", ""))
    restarts = fields.get("Restarts", "")
    return JobFacts(
        state=fields.get("JobState", ""),
        restarts=int(restarts) if restarts.isdecimal() else None,
        is_preempted=_seconds(fields.get("PreemptTime", "")) is not None,
        left_s=None if end is None else end - time.time(),
        excluded=hostnames(fields.get("ExcNodeList", "")),
    )


def hostnames(nodelist: str) -> tuple[str, ...]:
    """Names in a short form.  hostnames("n[1-2]") -> ("n1", "n2")"""
    if nodelist in ("", "(null)"):
        return ()
    shown = _answer("scontrol", "show", "hostnames", nodelist)
    return tuple(shown.split()) if shown else (nodelist,)


def lost_nodes(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the nodes that the queue takes for dead."""
    if not names:
        return ()
    shown = _answer("sinfo", "-h", "-N", "-n", ",".join(names), "-t", "down,fail", "-o", "%N")
    return tuple(dict.fromkeys(shown.split())) if shown else ()


def requeue(job_id: str, patience_s: float = _PATIENCE_S) -> str | None:
    """Put a running job, which ends by it, back into the queue; why not, where that is refused.

    A queue that does not answer, as while its controller starts again, is asked for some time.
    """
    deadline = time.monotonic() + patience_s
    while True:
        answer = _do("scontrol", "requeue", job_id)
        if answer is None or not _is_silence(answer) or time.monotonic() > deadline:
            return answer
        time.sleep(_ASK_AGAIN_S)


def exclude(job_id: str, nodes: Sequence[str]) -> str | None:
    """Keep a waiting job away from these nodes and no others; why not, where that is refused."""
    return _do("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}")


def cancel(job_ids: Sequence[str]) -> str | None:
    """Take jobs out of the queue."""
    return _do("scancel", *job_ids) if job_ids else None


def is_waiting(job_id: str) -> bool:
    """Whether a job is in the queue and has not started."""
    return job_facts(job_id).state == "PENDING"


def _answer(*words: str) -> str | None:
    """Standard output; None where the command fails."""
    result = _run(words)
    return result.stdout if result is not None and result.returncode == 0 else None


def _do(*words: str) -> str | None:
    """None, or why it failed."""
    result = _run(words)
    if result is None:
        return f"{words[0]} does not answer"
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return lines[-1]
    return None


def _is_silence(answer: str) -> bool:
    return any(words in answer.lower() for words in _SILENCE)


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def _seconds(stamp: str) -> float | None:
    """Of a local time of Slurm; None for `Unknown` and `None`."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
