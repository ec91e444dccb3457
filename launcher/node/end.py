"""The end of a job, on its first node: done, back to the queue, stopped or failed."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from launcher.config.run_yaml import read_run
from launcher.config.schema import Run
from launcher.failure.causes import find_cause
from launcher.failure.first import Failure, Traces, first_failure, report_of
from launcher.node import queue
from launcher.node.checks.result import read_checks
from launcher.node.ending import Ending, Facts, decide
from launcher.node.history import bad_nodes_of, earlier_starts, limits_of, past_of
from launcher.node.place import Place
from launcher.node.records import read_record, write_record
from launcher.node.steps import saved_step, trained_steps
from launcher.plan.run_files import RunFiles

_CUT_TRIES = 20


def finish(place: Place, exit_code: int, was_asked: bool, is_cut_off: bool = False) -> int:
    """Decide what comes after this start and bring it about; the exit code of the job.

    `is_cut_off`: it was ended because another node is gone.
    """
    if place.is_superseded:
        print("the job was started again elsewhere; this start is over", flush=True)
        return 0
    if (already := read_record(place.start.end)) is not None:  # `start` has found nothing to do.
        return 1 if already["status"] == "failed" else 0
    run = read_run(place.files.run)
    facts = _facts(place, exit_code, was_asked)
    return conclude(place, run, replace(facts, is_cut_off=facts.is_cut_off or is_cut_off))


def conclude(place: Place, run: Run, facts: Facts) -> int:
    """Write end.json and do what it says."""
    ending = decide(facts, limits_of(run))
    if ending.status == "requeued" and not place.is_queued:
        ending = replace(ending, status="failed")  # Nobody starts it again.
    failure = _first_failure(place)
    record = {
        **asdict(ending),
        "first_step": facts.first_step,
        "last_step": facts.trained_step,
        "saved_step": facts.saved_step,
        "lost_nodes": list(facts.lost_nodes),
        "ended_at": time.time(),
        "first_error": _words(failure) if ending.status != "done" else None,
    }
    followers = _followers(place.files)
    if ending.status == "requeued":
        return _again(place, run, ending, record, followers)
    write_record(place.start.end, record)
    queue.cancel(followers)
    print(f"{ending.status} ({ending.reason}): {ending.why}", flush=True)
    return 1 if ending.status == "failed" else 0


def _again(
    place: Place, run: Run, ending: Ending, record: dict[str, Any], followers: Sequence[str]
) -> int:
    """Back to the queue; where that is refused, the job that waits behind this one continues."""
    bad = list(dict.fromkeys([*bad_nodes_of(earlier_starts(place)), *ending.bad_nodes]))
    record["excluded"] = bad
    print(f"back to the queue ({ending.reason}): {ending.why}", flush=True)
    # First the record: the queue ends this program when it takes the job back.
    write_record(place.start.end, record)
    refused = "launch.requeue=false"
    if run.launch.requeue:
        facts = queue.job_facts(place.job_id)
        if facts.restarts not in (None, place.restart):
            print("the queue has started the job again already", flush=True)
            return 0
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # it comes before the nodes are excluded
        answer = queue.requeue(place.job_id)
        if answer is None:
            _stay_away(place.job_id, [*facts.excluded, *bad] if bad else [])
            return 0
        refused = f"the queue refuses: {answer}"
    if followers:
        _stay_away(followers[0], [*queue.job_facts(followers[0]).excluded, *bad] if bad else [])
        print(f"{refused}; job {followers[0]}, which waits behind this one, continues", flush=True)
        return 0
    way_on = f"`launch resume {place.files.root}` continues"
    record |= {"status": "stopped", "why": f"{ending.why}; {refused}; {way_on}"}
    write_record(place.start.end, record)
    print(f"stopped: {refused}; {way_on}", file=sys.stderr, flush=True)
    return 1


def _stay_away(job_id: str, nodes: list[str]) -> None:
    """Exclude nodes; the queue needs a moment until a requeued job can be changed."""
    if not nodes:
        return
    names = list(dict.fromkeys(nodes))
    for _ in range(_CUT_TRIES):
        answer = queue.exclude(job_id, names)
        if answer is None:
            print(f"excluded: {', '.join(names)}", flush=True)
            return
        time.sleep(0.1)
    print(f"{', '.join(names)} could not be excluded: {answer}", file=sys.stderr, flush=True)


def _facts(place: Place, exit_code: int, was_asked: bool) -> Facts:
    files, start = place.files, place.start
    nodes = read_record(start.nodes) or {}
    job = queue.job_facts(place.job_id) if place.is_queued else queue.JobFacts()
    failure, checks = _first_failure(place), read_checks(place.start)
    # The queue asks a job to end (TERM) whose other node it has lost, too.
    is_cut_off = job.state == "NODE_FAIL" or (job.restarts or 0) > place.restart
    return Facts(
        exit_code=exit_code,
        outcome=_outcome(files),
        first_step=int(nodes.get("first_step", 0)),
        trained_step=trained_steps(files),
        saved_step=saved_step(files),
        nodes=tuple(nodes.get("nodes") or ()),
        was_asked=was_asked,
        # A job that is being ended and is neither requeued nor at its limit was cancelled.
        is_cancelled=files.cancelled.exists()
        or (
            job.state in ("CANCELLED", "COMPLETING")
            and job.restarts in (None, place.restart)
            and not _is_at_limit(nodes)
        ),
        is_preempted=job.is_preempted,
        is_cut_off=is_cut_off,
        lost_nodes=queue.lost_nodes(nodes.get("nodes") or ()) if is_cut_off else (),
        left_s=job.left_s,
        bad_nodes=checks.bad_nodes,
        checks=checks.why,
        is_everywhere=checks.is_everywhere,
        hung=any(start.root.glob("hang_*.txt")),
        cause=find_cause(failure.error) if failure else None,
        error=f"rank {failure.rank} on {failure.node}: {failure.error}" if failure else "",
        failed_node=failure.node if failure and failure.node in nodes.get("nodes", ()) else None,
        past=past_of(earlier_starts(place)),
    )


def _is_at_limit(nodes: dict[str, Any]) -> bool:
    return nodes.get("ends_at") is not None and time.time() > float(nodes["ends_at"]) - 5.0


def _outcome(files: RunFiles) -> str | None:
    try:
        return str(json.loads(files.summary.read_text(encoding="utf-8"))["outcome"]["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _first_failure(place: Place) -> Failure | None:
    started_at = float((read_record(place.start.nodes) or {}).get("started_at", 0.0))
    report = report_of(sorted(place.start.root.glob("torchrun_*.log")))
    return first_failure(Traces(files=place.files, report=report, since=started_at))


def _words(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"rank": failure.rank, "node": failure.node, "error": failure.error}


def _followers(files: RunFiles) -> list[str]:
    """Jobs that were submitted behind this one and have not started."""
    found = (read_record(files.submitted) or {}).get("follow_up")
    names = [found] if isinstance(found, str) else list(found or ())
    return [name for name in names if queue.is_waiting(str(name))]
