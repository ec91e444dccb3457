"""What earlier starts of a run's jobs have left: their ends, and nodes to stay away from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from launcher.config.schema import Run
from launcher.node.ending import Limits, Past, lost_words
from launcher.node.place import Place
from launcher.node.queue import lost_nodes
from launcher.node.records import Start, list_starts, read_record, write_record
from launcher.node.steps import saved_step, trained_steps
from launcher.plan.run_files import RunFiles


def earlier_starts(place: Place) -> list[Start]:
    """Starts before this one since the run was submitted last, oldest first.

    What a person resumed has a new chance: failures before it do not count. Those of this same job
    do, whatever the clocks of two machines say.
    """
    submitted_at = _number((read_record(place.files.submitted) or {}).get("submitted_at"))
    this = (place.job_id, place.restart)
    starts = [start for start in list_starts(place.files) if (start.job_id, start.restart) != this]
    return [
        start
        for start in starts
        if start.job_id == place.job_id or _number(start.nodes.get("started_at")) >= submitted_at
    ]


def past_of(starts: Sequence[Start]) -> list[Past]:
    """Their reasons and first steps."""
    return [
        Past(
            reason=str((start.end or {}).get("reason", "node_failure")),
            first_step=int(_number(start.nodes.get("first_step"))),
            node=((start.end or {}).get("first_error") or {}).get("node"),
            lost=tuple((start.end or {}).get("lost_nodes", ())),
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


def close_lost_starts(
    files: RunFiles,
    starts: Sequence[Start],
    find_lost: Callable[[Sequence[str]], Sequence[str]] = lost_nodes,
) -> None:
    """Write the end of starts that could not: their first node was lost, or the queue was faster.

    The queue's notice goes to all agents; where one has heard it and no node is down, it was no
    accident. `find_lost` says which nodes are down now.
    """
    for start in starts:
        if start.end is not None:
            continue
        agents = [read_record(path) or {} for path in start.files.root.glob("agent_*.json")]
        lost = find_lost(start.nodes.get("nodes") or ())
        noticed = not lost and any(agent.get("signal") == "SIGUSR1" for agent in agents)
        write_record(
            start.files.end,
            {
                "status": "requeued",
                "reason": "preempted" if noticed else "node_failure",
                "why": "the queue ended the job before it could say how"
                if noticed
                else f"the job ended without a word: {lost_words(lost)}",
                "first_step": int(_number(start.nodes.get("first_step"))),
                "last_step": trained_steps(files),
                "saved_step": saved_step(files),
                "bad_nodes": [],
                "lost_nodes": list(lost),
                "ended_at": time.time(),
                "first_error": None,
            },
        )


def _number(value: object) -> float:
    """0 for what is missing or no number: a torn record is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else 0.0  # type: ignore[arg-type]
