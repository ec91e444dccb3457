"""The script that every host of a plain list runs, by ssh, by hand or under Open MPI."""

from __future__ import annotations

import shlex
from pathlib import Path

from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles
from launcher.render.firewall import render_firewall
from launcher.render.machine import Machine
from launcher.render.shell_lines import (
    describe_workers,
    export_lines,
    interpreter,
    node_variables,
    setup_lines,
    without_gaps,
)


def render_host_script(plan: Plan, run_dir: Path, machine: Machine) -> str:
    """`command.sh` of launch=torchrun and launch=mpirun.

    Args:
        plan: what runs.
        run_dir: absolute path of the run directory, visible on every host.
        machine: where the script is made.

    """
    launch = plan.run.launch
    is_mpi = launch.name == "mpirun"
    parts = [
        "#!/usr/bin/env bash",
        f"# {describe_workers(plan, machine)}",
        *(_MPI_HEAD if is_mpi else _how_to_start(plan, run_dir)),
        "",
        "# Text in single quotes means itself.",
        "# shellcheck disable=SC2016,SC1003",
        "set -uo pipefail",
        "# USR1 asks the workers to save and end. Until the agent answers it, nobody must end.",
        "trap '' USR1",
        f"run_dir={shlex.quote(str(run_dir))}",
        f"python={shlex.quote(interpreter(plan, machine))}",
        "",
        *(_mpirun(plan) if is_mpi else []),
        render_firewall(plan.run.parallelism.engine == "fsdp2"),
        "",
        _modules(plan) + setup_lines(plan),
        "",
        export_lines(node_variables(plan), (), machine),
        "",
        "# The agent meets the others, starts torchrun here, and ends what must not go on.",
        'exec "$python" -m launcher.node agent "$run_dir" ' + ('"$number"' if is_mpi else '"$@"'),
        "",
    ]
    return without_gaps("\n".join(parts))


def host_command(run_dir: Path, number: int | None) -> str:
    """What starts the agent of a host, as it is typed there.

    `number` counts the hosts from 0; None: the agent finds out by the host's name and address.
    """
    script = shlex.quote(str(RunFiles(root=run_dir).command))
    return f"bash {script}" + ("" if number is None else f" {number}")


_MPI_HEAD = [
    "# Without a word it has Open MPI start it again once on every host, with the word `host`."
]

# What Open MPI tells its own processes; settings of the user, OMPI_MCA_..., stay.
_NESTED = r"""
    # A job that was started inside another one of Open MPI has nothing of it.
    unset "${!PMI@}" "${!PRTE_@}" "${!OMPI_COMM_WORLD_@}" "${!OMPI_MCA_orte_@}" \
        "${!OMPI_MCA_ess@}" OMPI_MCA_pmix OMPI_MCA_initial_wdir OMPI_UNIVERSE_SIZE
    set --
    [ "$(id -u)" != 0 ] || set -- --allow-run-as-root
""".strip("\n").splitlines()


def _how_to_start(plan: Plan, run_dir: Path) -> list[str]:
    hosts = plan.run.launch.hosts
    if not hosts:
        where = "here" if plan.layout.nodes == 1 else f"on each of {plan.layout.nodes} hosts"
        return [f"# Started {where} by:", f"#   {host_command(run_dir, None)}"]
    width = max(len(host) for host in hosts)
    lines = ["# Every host runs it, with its number; `launch` does so by ssh, and people can, too:"]
    lines += [
        f"#   {host:{width}}  {host_command(run_dir, number)}" for number, host in enumerate(hosts)
    ]
    return lines


def _mpirun(plan: Plan) -> list[str]:
    """The part of the script that runs once."""
    launch, nodes = plan.run.launch, plan.layout.nodes
    # One process per host, which starts the workers; it is bound to no core: they share all.
    words = [f"-np {nodes}", "--map-by ppr:1:node", "--bind-to none"]
    if launch.hosts:
        words.append("--host " + ",".join(f"{host}:1" for host in launch.hosts))
    words += [f"-x {name}" for name in launch.secrets]
    lines = ['if [ "${1:-}" != host ]; then', *_NESTED]
    for name in launch.secrets:
        lines.append("    # a secret: its value comes from this shell, and is not here")
        lines.append(f'    : "${{{name}:?is not set}}"')
    return [
        *lines,
        "    # One process per host starts the workers there; no core is its own.",
        '    exec mpirun "$@" ' + " ".join(words) + " \\",
        '        --wdir "$run_dir" bash "$run_dir/command.sh" host',
        "fi",
        "number=${OMPI_COMM_WORLD_RANK:?is set by mpirun}",
        "",
    ]


def _modules(plan: Plan) -> str:
    """Ssh starts no login shell, which would know modules."""
    if not plan.run.launch.modules:
        return ""
    return (
        "# shellcheck source=/dev/null\n"
        "command -v module >/dev/null || { set +u; . /etc/profile; set -u; }\n"
    )
