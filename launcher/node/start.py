"""The beginning of a job, on its first node: what it continues, and what the start before left."""

from __future__ import annotations

import json
import sys
import time

from launcher.config.run_yaml import read_run
from launcher.config.schema import Run
from launcher.errors import RunFailed
from launcher.node import queue
from launcher.node.code import changed_code
from launcher.node.end import conclude
from launcher.node.ending import Facts, decide
from launcher.node.history import (
    bad_nodes_of,
    close_lost_starts,
    earlier_starts,
    limits_of,
    past_of,
)
from launcher.node.place import Place
from launcher.node.records import Start, write_record
from launcher.node.steps import last_sign_at, saved_step, trained_steps
from launcher.plan.run_files import RunFiles


def begin(place: Place) -> int:
    """Prepare this start of the job; 0 where it may train, an exit code where it must not."""
    # 1. The run, as it was frozen when it was submitted.
    files = place.files
    if files.pending.exists():
        raise RunFailed(
            f"a change of the files in {files.root} was cut off; `launch resume` completes it"
        )
    run = read_run(files.run)
    # 2. What earlier starts have left: their ends, and errors that are not of this one.
    before = earlier_starts(place)
    close_lost_starts(files, before)
    place.start.root.mkdir(parents=True, exist_ok=True)
    is_done = _is_done(files, run)
    if not is_done:
        _put_aside(files, before)
    # 3. Where it goes on.
    facts = queue.job_facts(place.job_id) if place.is_queued else queue.JobFacts()
    nodes = tuple(place.nodelist.split(","))
    nodes = queue.hostnames(place.nodelist) if place.is_queued else nodes
    write_record(
        place.start.nodes,
        {
            "nodes": list(nodes),
            "started_at": time.time(),
            "ends_at": None if facts.left_s is None else time.time() + facts.left_s,
            "first_step": saved_step(files),
            "last_sign_at": last_sign_at(files) if before else None,
            "excluded": bad_nodes_of(before),
        },
    )
    _say(place, nodes, before)
    # 4. Whether there is anything to do, and whether it may be tried again.
    if is_done:
        print("the run is finished: nothing is left to do", flush=True)
        return conclude(place, run, Facts(**_standing(files), exit_code=0, outcome="done"))
    return _give_up_without_progress(place, run, before)


def _is_done(files: RunFiles, run: Run) -> bool:
    try:
        outcome = json.loads(files.summary.read_text(encoding="utf-8"))["outcome"]
        return outcome["status"] == "done" and int(outcome["steps"]) >= run.train.steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _put_aside(files: RunFiles, before: list[Start]) -> None:
    """Errors and the summary belong to the start that wrote them."""
    if not before:
        return
    folder = before[-1].files.root
    for path in (files.summary, *files.logs.glob("rank_*.error.json")):
        if path.exists():
            path.replace(folder / path.name)


def _say(place: Place, nodes: tuple[str, ...], before: list[Start]) -> None:
    """One paragraph in the job's log for every start."""
    step = saved_step(place.files)
    where = f"continues after step {step}" if step else "starts from the beginning"
    lines = [
        f"job {place.job_id}, start {len(before) + 1}, on {', '.join(nodes) or place.node}: "
        f"the run {where}"
    ]
    if before and (end := before[-1].end):
        lines.append(f"the start before ended by {end.get('reason')}: {end.get('why')}")
    if changed := changed_code(place.files):
        lines.append(changed)
    if bad := bad_nodes_of(before):
        lines.append(f"stays away from {', '.join(bad)}")
    print("\n".join(lines), flush=True)


def _give_up_without_progress(place: Place, run: Run, before: list[Start]) -> int:
    """A start that could not write its end could not count it either."""
    if not before or (before[-1].end or {}).get("reason") not in ("node_failure", "preempted"):
        return 0
    last, past = before[-1], past_of(before[:-1])
    facts = Facts(
        exit_code=1,
        outcome=None,
        first_step=int(last.nodes.get("first_step", 0)),
        trained_step=trained_steps(place.files),
        saved_step=saved_step(place.files),
        is_cut_off=(last.end or {}).get("reason") == "node_failure",
        is_preempted=(last.end or {}).get("reason") == "preempted",
        past=past,
    )
    ending = decide(facts, limits_of(run))
    if ending.status == "requeued":
        return 0
    print(f"{ending.status}: {ending.why}", file=sys.stderr, flush=True)
    return conclude(place, run, facts)


def _standing(files: RunFiles) -> dict[str, int]:
    trained = trained_steps(files)
    return {"first_step": trained, "trained_step": trained, "saved_step": saved_step(files)}
