"""What happens to a job's processes, daemons, nodes and cables; done to a run and timed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launcher.node.processes import words_of
from tests.cluster.runs import Job
from tests.cluster.slurm import Cluster, wait_until

WORKER = "launcher.runtime.worker"
TORCHRUN = "torch.distributed.run"
AGENT = "launcher.node"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that has happened."""

    kind: str
    node: str
    at: float
    """Seconds since the epoch."""
    step: int
    """Steps done then."""
    saved: int
    """Steps in the newest checkpoint then."""
    resumes: int
    """How often the run had been continued before."""
    starts: int
    """How often the queue had started it."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How the run went on."""

    seconds: float
    """From the fault to the first further step."""
    first_step: int
    """Steps that were done when it went on."""
    by: str
    """torchrun: on the same nodes, the job went on; queue: it was started again."""


def strike(job: Job, kind: str, choice: random.Random) -> Fault:
    """Do it, now, to a node of the running job: any, or the one that the kind means."""
    cluster = job.cluster
    nodes = cluster.job_nodes(job.job_id)
    node = nodes[PLACES[kind]] if kind in PLACES else choice.choice(nodes)
    fault = Fault(
        kind=kind, node=node, step=job.num_steps, saved=job.saved_step,
        resumes=job.num_resumes, starts=len(job.starts), at=time.time(),
    )  # fmt: skip
    FAULTS[kind](cluster, node)
    return fault


def wait_for_recovery(job: Job, fault: Fault, timeout_s: float = 400) -> Recovery:
    """Until a step was done after the run went on from a checkpoint."""
    wait_until(
        lambda: job.num_resumes > fault.resumes and job.has_stepped, timeout_s,
        f"a step after {fault}", lambda: f"{job.cluster.job(job.job_id)} {job.log}",
    )  # fmt: skip
    return Recovery(
        seconds=time.time() - fault.at,
        first_step=job.resumed_at,
        by="queue" if len(job.starts) > fault.starts else "torchrun",
    )


def heal(job: Job, fault: Fault, timeout_s: float = 400) -> None:
    """The node is as it was before, and free; meanwhile the run, which takes seconds, stands still.

    What was left running there must end itself. Then the node starts anew, as after repairs: a
    slurmd that still ends the job's earlier start would kill the next one, for Slurm (22.05) gives
    it the node as soon as it answers and knows the two by the same number.
    """
    if fault.kind in ("rank", "torchrun", "agent", "hang"):
        return
    cluster = job.cluster
    with frozen(job):
        cluster.join(fault.node)
        wait_until(
            lambda: not training(cluster, fault.node), timeout_s, f"nothing trains after {fault}"
        )
        cluster.restart(fault.node)
        spare = cluster.num_nodes - len(cluster.job_nodes(job.job_id))
        wait_until(
            lambda: len(cluster.idle_nodes()) >= spare, timeout_s, f"spare nodes after {fault}",
            lambda: cluster.slurm("sinfo", "-N", "-l"),
        )  # fmt: skip


@contextlib.contextmanager
def frozen(job: Job) -> Iterator[None]:
    """Meanwhile no step is done: one rank stands still, and the others wait for it."""
    node = job.cluster.job_nodes(job.job_id)[0]
    pid = next(pid for pid in job.cluster.processes(node) if _program(pid) == WORKER)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def training(cluster: Cluster, node: str) -> list[int]:
    """Processes on a node that train or look after training."""
    return [pid for pid in cluster.processes(node) if _program(pid)]


def _kill_one(
    program: str, number: signal.Signals = signal.SIGKILL
) -> Callable[[Cluster, str], None]:
    def kill(cluster: Cluster, node: str) -> None:
        found = [pid for pid in cluster.processes(node) if _program(pid) == program]
        assert found, f"no {program} on {node}"
        # The last one: of the ranks, not always the one that writes the metrics.
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[-1], number)

    return kill


def _lose_daemon(cluster: Cluster, node: str) -> None:
    """What it started runs on, so a rank is held: else a run of seconds would end before the queue
    misses the daemon."""
    held = next(pid for pid in cluster.processes(node) if _program(pid) == WORKER)
    os.kill(held, signal.SIGSTOP)
    cluster.kill_slurmd(node)


def _program(pid: int) -> str:
    """Which of ours a process is; torchrun's words name the worker, too."""
    words = words_of(pid)
    if TORCHRUN in words:
        return TORCHRUN
    if WORKER in words:
        return WORKER
    # The interpreter's own words, not those of a shell or srun that starts it.
    return AGENT if words[1:4] == ["-m", AGENT, "agent"] else ""


FAULTS: dict[str, Callable[[Cluster, str], None]] = {
    "rank": _kill_one(WORKER),
    "hang": _kill_one(WORKER, signal.SIGSTOP),
    "torchrun": _kill_one(TORCHRUN),
    "agent": _kill_one(AGENT),
    "slurmd": _lose_daemon,
    "cable": Cluster.cut,
    "node": Cluster.kill_node,
    "head": Cluster.kill_node,
}
PLACES = {"head": 0, "hang": 1}
"""Of the job's nodes; the others may be any."""
