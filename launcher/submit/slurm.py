"""Hands a written run to Slurm, once, and writes down which job it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Finding, SubmissionRefused
from launcher.node.records import read_record, write_record
from launcher.plan.run_files import RunFiles
from launcher.submit.slurm_ask import NO_ANSWER, ask

_GONE = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
         "TIMEOUT", "REVOKED"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What sbatch answered."""

    job_id: str
    cluster: str | None
    follow_ups: tuple[str, ...] = ()
    at: float
    """Seconds since the epoch, before the job could start."""


def submit_script(script: Path, follow_ups: int = 0) -> Submitted:
    """Submit a script, and so many jobs that start one behind the other's end.

    Raises SubmissionRefused with Slurm's own reason. Nothing is tried twice.
    """
    at = time.time()
    job_id, cluster = _sbatch(str(script))
    behind: list[str] = []
    for _ in range(follow_ups):
        before = behind[-1] if behind else job_id
        # Without the second option a follow-up of a job that cannot end waits for ever.
        options = (f"--dependency=afterany:{before}", "--kill-on-invalid-dep=yes")
        try:
            behind.append(_sbatch(*options, str(script))[0])
        except SubmissionRefused:
            ask("scancel", job_id, *behind)
            raise
    return Submitted(job_id=job_id, cluster=cluster, follow_ups=tuple(behind), at=at)


def record_job(files: RunFiles, job: Submitted, task: int | None = None) -> None:
    """Write job.json of a run, which may be a task of an array."""
    behind = job.follow_ups
    document = {
        "kind": "slurm",
        "job_id": job.job_id,
        "array_task": task,
        "cluster": job.cluster,
        "submitted_at": job.at,
        "follow_up": behind[0] if len(behind) == 1 else list(behind) or None,
    }
    write_record(files.submitted, document)


def refuse_if_queued(files: RunFiles) -> None:
    """Raise SubmissionRefused where a job of this run waits or runs."""
    record = read_record(files.submitted)
    if record is None or record.get("kind") != "slurm":
        return
    behind = record.get("follow_up") or []
    ids = [str(record["job_id"]), *([behind] if isinstance(behind, str) else behind)]
    if record.get("array_task") is not None:
        ids[0] += f"_{record['array_task']}"
    live = [f"{name} ({state})" for name in ids if (state := job_state(name)) is not None]
    if live:
        finding = Finding(
            field=str(files.root),
            rule="run-in-use",
            reason=f"its job {' and '.join(live)} is in Slurm's queue",
            fix=f"scancel {' '.join(ids)}, or wait for its end",
        )
        raise SubmissionRefused(str(finding))


def job_state(job_id: str) -> str | None:
    """Slurm's word for the state of a job that waits or runs; None for any other."""
    said = ask("squeue", "-h", "-j", job_id, "-o", "%T")
    states = [word for word in said.out.split() if word not in _GONE]
    return states[0] if states else None


def _sbatch(*words: str) -> tuple[str, str | None]:
    said = ask("sbatch", "--parsable", *words)
    if said.code == NO_ANSWER or "timed out" in said.error:
        raise SubmissionRefused(
            f"sbatch [slurm-unsure]: {said.reason}; the job may be in the queue or not. "
            f"Try squeue --me -o '%i %j %o', which names {words[-1]} if it is."
        )
    if said.code != 0:
        raise SubmissionRefused(f"sbatch [slurm-refused]: {said.reason}.")
    job_id, _, cluster = said.out.strip().splitlines()[-1].partition(";")
    return job_id, cluster or None


def same_queue(options: Sequence[Sequence[tuple[str, str | None]]]) -> list[str]:
    """Options in which the tasks of an array differ; names and logs may."""
    free = {"job-name", "output"}
    first = dict(options[0])
    absent = object()
    return sorted(
        {
            key
            for other in map(dict, options[1:])
            for key in {*first, *other} - free
            if first.get(key, absent) != other.get(key, absent)
        }
    )
