"""Which of a plain list of hosts is this machine?"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

from launcher.config.run_yaml import read_run
from launcher.errors import RunFailed
from launcher.node.place import Place
from launcher.node.records import read_record
from launcher.plan.run_files import RunFiles

PLAIN = ("torchrun", "mpirun")
"""launch.name of jobs without a queue."""


def plain_place(run_dir: Path, number: int | None) -> Place | None:
    """The place of this host in a run without a queue; None for a run of Slurm's.

    `number` counts the hosts from 0; None: found out. Raises RunFailed where that cannot be.
    """
    files = RunFiles(root=run_dir)
    record = read_record(files.submitted) or {}
    if record.get("kind") not in PLAIN:
        return None
    launch = read_run(files.run).launch
    if number is None:
        number = _number_here(launch.hosts, launch.rendezvous_endpoint, files)
    elif launch.name == "torchrun" and not 0 <= number < max(1, len(launch.hosts)):
        raise RunFailed(f"launch.hosts has no host {number}; they are counted from 0")
    node = socket.gethostname()
    if launch.name == "torchrun" and launch.hosts:
        node = launch.hosts[number]
    elif len(here := hosts_here(launch.hosts)) == 1:
        node = launch.hosts[here[0]]  # Open MPI counts as it likes.
    return Place(
        files=files,
        job_id=str(record["job_id"]),
        restart=0,
        node=node,
        index=number,
        nodelist=",".join(launch.hosts) or node,
        is_queued=False,
    )


def hosts_here(hosts: Sequence[str]) -> list[int]:
    """Numbers of the hosts that are this machine, by name or by address."""
    return [number for number, host in enumerate(hosts) if is_here(host)]


def is_here(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    own = socket.gethostname()
    if host in (own, own.partition(".")[0]):
        return True
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, 0, socket.AF_UNSPEC, socket.SOCK_STREAM
        ):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)  # The kernel refuses addresses of others.
                return True
    return False


def _number_here(hosts: Sequence[str], endpoint: str | None, files: RunFiles) -> int:
    if not hosts:
        # Whoever has the address where all meet is the first; the others need no number.
        return 0 if endpoint is None or is_here(endpoint.rpartition(":")[0]) else 1
    here = hosts_here(hosts)
    if len(here) != 1:
        which = "several" if here else "none"
        numbers = ", ".join(f"{number} for {host}" for number, host in enumerate(hosts))
        raise RunFailed(
            f"{which} of launch.hosts is this machine, {socket.gethostname()}, by its name or "
            f"addresses; say which after {files.command}: {numbers}"
        )
    return here[0]
