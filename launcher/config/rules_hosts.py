"""Rules on plain hosts: launch=torchrun and launch=mpirun."""

from __future__ import annotations

import re

from launcher.config.rule import Rule
from launcher.config.schema import Run

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", re.ASCII)
_ENDPOINT = re.compile(r"(.*):([0-9]{1,5})", re.ASCII)
_PLAIN = ("torchrun", "mpirun")


def _not_in_use(run: Run) -> str | None:
    launch = run.launch
    if launch.hosts and launch.name == "slurm":
        return "Slurm chooses the nodes; launch.nodelist names some that must be among them"
    if launch.hosts and launch.name == "local":
        return "launch=local starts workers on this machine only"
    return None


def _hosts(run: Run) -> str | None:
    hosts = run.launch.hosts
    for host in hosts:
        if not _HOST.fullmatch(host):
            way = "; ssh reads users and ports in ~/.ssh/config" if "@" in host else ""
            return f"{host!r} is neither the name of a host nor an IPv4 address{way}"
    for host in hosts:
        if hosts.count(host) > 1:
            return f"{host} is there {hosts.count(host)} times, and every host has one agent"
    if len(hosts) > 1 and (here := next(filter(_is_loopback, hosts), None)):
        return f"{here} is another machine on each of them"
    return None


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or host.startswith("127.")


def _count(run: Run) -> str | None:
    launch, nodes = run.launch, run.hardware.num_nodes
    if launch.name not in _PLAIN:
        return None
    if launch.hosts and len(launch.hosts) != nodes:
        return f"launch.hosts has {len(launch.hosts)}, and hardware.num_nodes={nodes}"
    if launch.hosts or nodes == 1 or launch.name == "mpirun":
        return None  # Open MPI may have its hosts from a scheduler.
    if launch.start == "manual" and launch.rendezvous_endpoint:
        return None
    return f"hardware.num_nodes={nodes}, and nothing says which machines these are"


def _some_hosts(run: Run) -> str:
    names = ",".join(f"host{number}" for number in range(1, min(run.hardware.num_nodes, 4) + 1))
    more = ",..." if run.hardware.num_nodes > 4 else ""
    return f"launch.hosts=[{names}{more}]"


def _endpoint(run: Run) -> str | None:
    launch = run.launch
    given = launch.rendezvous_endpoint
    if given is None:
        return None
    if launch.name not in _PLAIN:
        return f"it goes with launch=torchrun and launch=mpirun, and this is launch={launch.name}"
    match = _ENDPOINT.fullmatch(given)
    if match is None:
        return "it is not HOST:PORT"
    host, port = match[1], int(match[2])
    if not _HOST.fullmatch(host):
        return f"{host!r} is neither the name of a host nor an IPv4 address"
    if not 0 < port < 65536:
        return f"{port} is no port; ports are 1 to 65535"
    if run.hardware.num_nodes > 1 and _is_loopback(host):
        return f"{host} is another machine on each host"
    if host in launch.hosts[1:]:
        return f"the first host, {launch.hosts[0]}, listens there, and {host} is another one"
    return None


def _some_endpoint(run: Run) -> str:
    if run.launch.name not in _PLAIN:
        return "launch.rendezvous_endpoint=null"
    host = run.launch.hosts[0] if run.launch.hosts else "host1"
    return f"launch.rendezvous_endpoint={host}:29500"


def _container(run: Run) -> str | None:
    if run.launch.name in _PLAIN and run.launch.container is not None:
        return f"launch={run.launch.name} starts no containers"
    return None


HOST_RULES = (
    Rule(
        id="hosts-without-slurm",
        field="launch.hosts",
        says="hosts are for launch=torchrun and launch=mpirun",
        why="They would be ignored.",
        broken=_not_in_use,
        candidates=lambda run: ((),),
        fix="launch.hosts=[]",
    ),
    Rule(
        id="hosts-readable",
        field="launch.hosts",
        says="hosts are names or IPv4 addresses, each of another machine, each once",
        why="They are words of ssh and mpirun, and every host resolves the first one.",
        broken=_hosts,
        fix=_some_hosts,
    ),
    Rule(
        id="hosts-fill-nodes",
        field="launch.hosts",
        says="launch.hosts has as many hosts as hardware.num_nodes",
        why="Agents would wait for hosts that never come, or hosts would be left out.",
        broken=_count,
        fix=_some_hosts,
    ),
    Rule(
        id="endpoint-readable",
        field="launch.rendezvous_endpoint",
        says="rendezvous_endpoint is HOST:PORT on the first host of launch=torchrun or mpirun",
        why="The first host listens there, and every other one must reach it.",
        broken=_endpoint,
        fix=_some_endpoint,
    ),
    Rule(
        id="container-needs-slurm",
        field="launch.container",
        says="containers are started in Slurm jobs",
        why="Elsewhere the key would be ignored; launch.setup and launch.python name what is used.",
        broken=_container,
        fix="launch.container=null launch.image=null",
    ),
)
"""Rules of launch.hosts and launch.rendezvous_endpoint."""
