"""What earlier starts of a run's jobs have left: their ends, and nodes to stay away from."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.config.schema import Run
from launcher.node.ending import Limits, Past
from launcher.node.place import Place
from launcher.node.records import Start, list_starts, read_record, write_record
from launcher.node.steps import saved_step, trained_steps
from launcher.plan.run_files import RunFiles


def earlier_starts(place: Place) -> list[Start]:
    """Starts before this one since the run was submitted last, oldest first.

    What a person resumed has a new chance: failures before it do not count.
    """
    submitted_at = float((read_record(place.files.submitted) or {}).get("submitted_at", 0.0))
    this = (place.job_id, place.restart)
    starts = [start for start in list_starts(place.files) if (start.job_id, start.restart) != this]
    return [start for start in starts if start.nodes.get("started_at", 0.0) >= submitted_at]


def past_of(starts: Sequence[Start]) -> list[Past]:
    """Their reasons and first steps."""
    return [
        Past(
            reason=str((start.end or {}).get("reason", "node_failure")),
            first_step=int(start.nodes.get("first_step", 0)),
            node=((start.end or {}).get("first_error") or {}).get("node"),
        )
        for start in starts
    ]


def bad_nodes_of(starts: Sequence[Start]) -> list[str]:
    """Nodes that were found bad, in the order in which they were."""
    found = [node for start in starts for node in (start.end or {}).get("bad_nodes", ())]
    return list(dict.fromkeys(found))


def limits_of(run: Run) -> Limits:
    """What the configuration allows."""
    launch = run.launch
    return Limits(
        max_requeues=launch.max_requeues,
        max_failures_without_progress=launch.max_failures_without_progress,
        signal_seconds=launch.signal_seconds,
    )


def close_lost_starts(files: RunFiles, starts: Sequence[Start]) -> None:
    """Write the end of starts that could not: their first node was lost, or the queue was faster.

    The queue's notice goes to all agents; where one has heard it, it was no accident.
    """
    for start in starts:
        if start.end is not None:
            continue
        agents = [read_record(path) or {} for path in start.files.root.glob("agent_*.json")]
        noticed = any(agent.get("signal") == "SIGUSR1" for agent in agents)
        write_record(
            start.files.end,
            {
                "status": "requeued",
                "reason": "preempted" if noticed else "node_failure",
                "why": "the queue ended the job before it could say how"
                if noticed
                else "the job ended without a word: one of its nodes was lost",
                "first_step": int(start.nodes.get("first_step", 0)),
                "last_step": trained_steps(files),
                "saved_step": saved_step(files),
                "bad_nodes": [],
                "ended_at": time.time(),
                "first_error": None,
            },
        )
