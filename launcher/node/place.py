"""Where this program runs: which start of which job, on which node."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import RunFailed
from launcher.node.records import read_record
from launcher.plan.run_files import RunFiles, StartFiles


@dataclass(frozen=True, kw_only=True)
class Place:
    """One node of one start of a job."""

    files: RunFiles
    job_id: str
    restart: int
    """How often the queue has started this job again."""
    node: str
    """As the queue calls it."""
    index: int
    """Of the node among the job's nodes."""
    nodelist: str
    """All nodes of the job, in the queue's short form: n[1-4]; of plain hosts, with commas."""
    is_queued: bool = True
    """In a Slurm job; False: one of a plain list of hosts."""

    @property
    def start(self) -> StartFiles:
        """Files of this start."""
        return self.files.start(self.job_id, self.restart)

    @property
    def is_superseded(self) -> bool:
        """The job was started again elsewhere: what runs here has no right to."""
        if not self.is_queued:
            record = read_record(self.files.submitted)
            return record is not None and record.get("job_id") != self.job_id
        return self.files.start(self.job_id, self.restart + 1).root.exists()


def read_place(run_dir: Path) -> Place:
    """The variables that Slurm sets in a job; read here and nowhere else."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise RunFailed("this runs inside a Slurm job; SLURM_JOB_ID is not set")
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return Place(
        files=RunFiles(root=run_dir),
        job_id=job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        node=node,
        index=int(os.environ.get("SLURM_NODEID") or 0),
        nodelist=os.environ.get("SLURM_JOB_NODELIST", node),
    )
