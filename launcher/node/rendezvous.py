"""Where the agents of a job meet: a port that was free on the first node, published by a file."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from launcher.node.records import read_record, write_record
from launcher.plan.run_files import StartFiles


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One try at meeting."""

    host: str
    port: int
    round: int
    """Number of the try, from 1: a port that was taken meanwhile makes another one."""


def free_port() -> int:
    """A port that nobody listens at, on any of this machine's addresses.

    It is free, not reserved: whoever takes it before torchrun does makes torchrun fail at once,
    and the agents try another one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def publish(path: Path, endpoint: Endpoint) -> None:
    """Tell the other nodes."""
    document = {"host": endpoint.host, "port": endpoint.port, "round": endpoint.round}
    write_record(path, document)


def published(path: Path) -> Endpoint | None:
    """What the first node has told; None until then, and where it cannot be understood."""
    record = read_record(path) or {}
    try:
        return Endpoint(
            host=str(record["host"]), port=int(record["port"]), round=int(record["round"])
        )
    except (KeyError, ValueError, TypeError):
        return None


def ask_again(start: StartFiles, node: str, round_number: int) -> None:
    """Ask the first node's agent for another try after this one."""
    write_record(start.again(node), {"node": node, "round": round_number})


def is_asked_again(start: StartFiles, round_number: int) -> bool:
    """Whether a node asks for another try after this one."""
    records = [read_record(path) or {} for path in start.root.glob("again_*.json")]
    return any(record.get("round") == round_number for record in records)


def name_of_this_node(slurm_name: str) -> str:
    """What the other nodes can resolve: the queue's name where it is one of DNS, too."""
    for name in (slurm_name, socket.gethostname()):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            continue
        return name
    return slurm_name
