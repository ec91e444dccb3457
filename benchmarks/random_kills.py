"""How a run comes through random kills, and how long it stands still for each.

A cluster of four virtual nodes (tests/cluster: as root, with Slurm) trains a tiny model on two of
them, by the command that users type. At random steps a random thing is killed: a rank, a torchrun,
the agent beside it, a slurmd, a whole node, a cable. Nobody helps the run; what was killed is
mended once the run has gone on. At the end every loss and every byte of the weights is compared
with those of a run that was left alone.

    python -m benchmarks.random_kills --kills 20 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.faults import FAULTS, Fault, Recovery, heal, strike, wait_for_recovery
from tests.cluster.runs import Job, same, submit
from tests.cluster.slurm import Cluster, wait_until, why_not_here

KINDS = ("rank", "torchrun", "agent", "slurmd", "node", "cable")
INTERVAL = 20
"""Steps between checkpoints."""
BETWEEN = (5, 30)
"""Steps from one recovery to the next kill: some kills come before anything new was saved."""
PATIENCE_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of which one is drawn each time")
    parser.add_argument("--folder", default=None, help="for the runs; a temporary one")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(FAULTS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if reason := why_not_here():
        parser.error(reason)
    choice = random.Random(options.seed)
    kills = [(choice.choice(kinds), choice.randint(*BETWEEN)) for _ in range(options.kills)]
    os.environ["OMP_NUM_THREADS"] = "1"
    cluster = Cluster()
    try:
        cluster.start()
        folder = Path(options.folder or tempfile.mkdtemp())
        return measure(cluster, folder, kills, choice)
    finally:
        cluster.stop()


def measure(
    cluster: Cluster, folder: Path, kills: list[tuple[str, int]], choice: random.Random
) -> int:
    """Both runs, the table and the verdict; 0 where the runs are the same."""
    num_steps = 2 * INTERVAL + sum(steps for _, steps in kills)
    run = (f"train.steps={num_steps}", f"checkpoint.every_steps={INTERVAL}")
    reference = submit(cluster, folder, "undisturbed", *run)
    finish(reference)
    print(f"{len(kills)} kills in {num_steps} steps, a checkpoint every {INTERVAL}", flush=True)
    print("| kill | at step | node | goes on from | steps lost | by | recovery |")
    print("|---|---|---|---|---|---|---|", flush=True)
    limits = (f"launch.max_failures_without_progress={len(kills) + 1}", "launch.max_restarts=3")
    began = time.monotonic()
    job = submit(cluster, folder, "killed", *run, *limits)
    job.wait_for_step(INTERVAL + 1, PATIENCE_S)
    wait_until(lambda: job.saved_step, PATIENCE_S, "the first checkpoint")
    happened = [suffer(job, kind, steps, choice) for kind, steps in kills]
    finish(job)
    report(happened, time.monotonic() - began, reference)
    is_same = same(job, reference)
    print(f"weights and losses: {'identical' if is_same else 'DIFFERENT'}; {job.ends[-1]}")
    return 0 if is_same else 1


def suffer(job: Job, kind: str, steps: int, choice: random.Random) -> tuple[Fault, Recovery]:
    """One kill, its line in the table, and its mending."""
    job.wait_for_step(job.resumed_at + steps, PATIENCE_S)
    fault = strike(job, kind, choice)
    recovery = wait_for_recovery(job, fault, PATIENCE_S)
    print(
        f"| {kind} | {fault.step} | {fault.node} | {recovery.first_step} | "
        f"{num_lost(fault, recovery)} | {recovery.by} | {recovery.seconds:.1f} s |",
        flush=True,
    )
    heal(job, fault, PATIENCE_S)
    return fault, recovery


def num_lost(fault: Fault, recovery: Recovery) -> int:
    """Steps that were done twice; a step may still have been saved as it happened."""
    return max(0, fault.step - recovery.first_step)


def finish(job: Job) -> None:
    """Wait for the end of the run, which must be a good one."""
    state = job.wait_for_end(PATIENCE_S)
    if state != "COMPLETED":
        sys.exit(f"the job ended as {state}: {job.ends}\n{job.log}")


def report(happened: list[tuple[Fault, Recovery]], seconds: float, reference: Job) -> None:
    """Medians by kind, and how much longer the run took than the other."""
    print()
    by_kind: dict[str, list[float]] = {}
    for fault, recovery in happened:
        by_kind.setdefault(f"{fault.kind} (by {recovery.by})", []).append(recovery.seconds)
    for name, times in sorted(by_kind.items()):
        print(
            f"{name:24} {len(times):2} times, median {statistics.median(times):.1f} s, "
            f"longest {max(times):.1f} s"
        )
    lost = [num_lost(fault, recovery) for fault, recovery in happened]
    start = reference.starts[0]
    alone_s = (start.end or {})["ended_at"] - start.nodes["started_at"]
    print(
        f"steps lost: {sum(lost)}, {max(lost)} at the most; {seconds:.0f} s, alone {alone_s:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
