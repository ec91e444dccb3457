"""Decides how a start of a job has ended and what comes next: a function from facts to a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.failure.causes import Cause

Status = Literal["done", "requeued", "stopped", "failed"]
Reason = Literal[
    "finished", "time_limit", "preempted", "node_failure", "bad_node", "hang", "worker_failed",
    "configuration", "no_progress", "cancelled", "port", "unknown",
]  # fmt: skip
# An end by notice has saved; what the queue takes for itself is nobody's failure.
_NO_FAILURES = ("preempted", "cancelled")
# These come again whenever they come; the other useless ones only before the first step: a file
# that is gone after an hour of training may be back.
_ALWAYS_FINAL = ("configuration", "not_a_number", "out_of_memory")
_KILLED = (128 + 9, 128 + 15)
"""Exit codes of srun where its tasks were ended by SIGKILL or SIGTERM."""
_SLOW_SIGNAL_S = 60.0
"""Slurm sends the notice of a time limit up to a minute early."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """How an earlier start ended."""

    reason: str
    first_step: int
    node: str | None = None
    """Of the rank that failed first."""
    lost: tuple[str, ...] = ()
    """Nodes by whose loss it ended."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of launch.*."""

    max_requeues: int | None
    max_failures_without_progress: int
    signal_seconds: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known when a start has ended."""

    exit_code: int
    """Of srun, or of the agent of the first host."""
    outcome: str | None
    """What the workers wrote: done, stopped, or nothing."""
    first_step: int
    """Steps that were done when it began."""
    trained_step: int
    saved_step: int
    """Steps in the newest checkpoint."""
    nodes: Sequence[str] = ()
    """On which it ran."""
    was_asked: bool = False
    """The queue sent its notice."""
    is_cancelled: bool = False
    """Somebody took the job out of the queue."""
    is_preempted: bool = False
    left_s: float | None = None
    """Seconds to the time limit; None: there is none."""
    bad_nodes: Sequence[str] = ()
    """Those that did not pass the checks."""
    checks: str = ""
    """What the checks found, also where they could name no node."""
    is_everywhere: bool = False
    """All nodes, more than one, have the same fault."""
    hung: bool = False
    is_cut_off: bool = False
    """The queue has taken it back by itself: one of its nodes was lost."""
    lost_nodes: Sequence[str] = ()
    """Which ones, as far as the queue says."""
    cause: Cause | None = None
    """Of the first error of a rank; None: no rank told one."""
    error: str = ""
    """The same in words."""
    failed_node: str | None = None
    past: Sequence[Past] = ()
    """Earlier starts since the run was submitted, oldest first."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What end.json says."""

    status: Status
    reason: Reason
    why: str
    """A sentence for people."""
    bad_nodes: tuple[str, ...] = ()
    """Nodes on which the job must not run again."""


def is_final(cause: Cause, has_trained: bool) -> bool:
    """Whether an error comes again however often the job is started."""
    if cause.kind == "run_in_use":  # by processes of the start before, which are ending
        return False
    return cause.again == "useless" and (cause.kind in _ALWAYS_FINAL or not has_trained)


def lost_words(nodes: Sequence[str]) -> str:
    """lost_words(["n2"]) -> 'lost n2'"""
    return f"lost {', '.join(nodes)}" if nodes else "one of its nodes was lost"


def decide(facts: Facts, limits: Limits) -> Ending:
    """Done, back to the queue, stopped or failed."""
    ending = _what_happened(facts, limits)
    if ending.status != "requeued":
        return ending
    failures = failures_without_progress(facts, ending.reason)
    limit = limits.max_failures_without_progress
    if failures >= limit:
        why = f"{ending.why}; {failures} times in a row without a further saved step"
        return _failed("no_progress", f"{why} (launch.max_failures_without_progress={limit})")
    if limits.max_requeues is not None and len(facts.past) >= limits.max_requeues:
        why = f"{ending.why}; started {len(facts.past) + 1} times"
        stop = f"{why} (launch.max_requeues={limits.max_requeues})"
        return Ending(status="stopped", reason=ending.reason, why=stop, bad_nodes=ending.bad_nodes)
    return ending


def failures_without_progress(facts: Facts, reason: str) -> int:
    """How many starts in a row, this one included, have ended and left no newer checkpoint."""
    count = 0
    now = Past(reason=reason, first_step=facts.first_step)
    for past in (now, *reversed(facts.past)):
        if past.first_step < facts.saved_step:
            break
        count += past.reason not in _NO_FAILURES
    return count


def _what_happened(facts: Facts, limits: Limits) -> Ending:
    has_trained = facts.trained_step > facts.first_step
    if facts.outcome == "done":
        return Ending(status="done", reason="finished", why=f"{facts.trained_step} steps are done")
    if facts.is_cancelled:
        return Ending(status="stopped", reason="cancelled", why="the job was cancelled")
    if facts.is_cut_off:
        why = f"the nodes were parted: {lost_words(facts.lost_nodes)}"
        return _again("node_failure", why)
    if facts.cause is not None and is_final(facts.cause, has_trained):
        reason: Reason = "worker_failed" if facts.cause.kind == "not_a_number" else "configuration"
        return _failed(reason, f"{facts.error}: {facts.cause.meaning}; not tried again")
    if facts.is_preempted:
        return _again("preempted", "the queue needed the nodes")
    if facts.was_asked or facts.outcome == "stopped":
        if facts.left_s is not None and facts.left_s <= limits.signal_seconds + _SLOW_SIGNAL_S:
            return _again("time_limit", "the time limit was near")
        return Ending(status="stopped", reason="cancelled", why="it was asked to save and end")
    if facts.bad_nodes or facts.checks:
        return _failed_checks(facts)
    if facts.hung or (facts.cause is not None and facts.cause.kind == "hang"):
        return _hang(facts)
    return _failure(facts)


def _failed_checks(facts: Facts) -> Ending:
    """Bad nodes are left out; what all of them have, others will have as well."""
    why = f"checks before the training failed: {facts.checks or ', '.join(facts.bad_nodes)}"
    if facts.is_everywhere:
        return _failed("bad_node", why)
    return _again("bad_node", why, facts.bad_nodes)


def _hang(facts: Facts) -> Ending:
    """Once may be anything; a node on which a rank hangs again is left out."""
    why = facts.error or "no step was finished in time; hang_*.txt has all ranks' stacks"
    node = facts.failed_node
    again = node is not None and any(p.reason == "hang" and p.node == node for p in facts.past)
    return _again("hang", why, (node,) if node is not None and again else ())


def _failure(facts: Facts) -> Ending:
    """A worker or an agent failed of itself."""
    if facts.cause is None:
        why = f"the job's step ended with exit code {facts.exit_code}, and no rank said why"
        if returned := _nodes_that_kill(facts):
            why = (
                f"{why}; {', '.join(returned)} had been lost by this job, and kills what it starts"
            )
            return _again("node_failure", why, returned)
        return _again("unknown", why)
    if facts.cause.kind == "port_taken":
        return _again("port", facts.error)
    bad = ()
    if facts.cause.again == "elsewhere" and facts.failed_node:
        bad = (facts.failed_node,)
    return _again("worker_failed", facts.error, bad)


def _nodes_that_kill(facts: Facts) -> tuple[str, ...]:
    """Nodes that were lost, came back, and did not let this start take a step.

    Slurm (seen: 22.05) gives such a node to a job before the node has ended that job's earlier
    start, and until that has ended it kills all that has the job's number, once a second.
    """
    if facts.exit_code not in _KILLED or facts.trained_step > facts.first_step:
        return ()
    lost = {node for past in facts.past for node in past.lost}
    return tuple(node for node in facts.nodes if node in lost)


def _again(reason: Reason, why: str, bad_nodes: Sequence[str] = ()) -> Ending:
    return Ending(status="requeued", reason=reason, why=why, bad_nodes=tuple(bad_nodes))


def _failed(reason: Reason, why: str) -> Ending:
    return Ending(status="failed", reason=reason, why=why)
