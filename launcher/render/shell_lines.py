"""Lines of bash around the workers, the same in every script that goes to other machines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launcher.plan.records import Plan
from launcher.render.environment import Variable, worker_environment
from launcher.render.machine import Machine


def describe_workers(plan: Plan, machine: Machine) -> str:
    """How many of them on how many nodes, and of which code: the head of a script."""
    layout = plan.layout
    nodes = f"{layout.nodes} node{'' if layout.nodes == 1 else 's'}"
    return f"{layout.world_size} workers on {nodes}. Code: {machine.code}."


def interpreter(plan: Plan, machine: Machine) -> str:
    """What runs the agents: launch.python, else that of conda or venv, else the one here."""
    launch = plan.run.launch
    if launch.python is not None:
        return launch.python
    return "python" if launch.conda or launch.venv else machine.python


def node_variables(plan: Plan) -> tuple[Variable, ...]:
    """Environment of the workers on a node of which only the job knows."""
    # Cores of the nodes are unknown here; the default is one per rank.
    cores = plan.run.launch.cpus_per_task or plan.layout.gpus_per_node
    return worker_environment(plan, cores)


def setup_lines(plan: Plan) -> str:
    """Modules, conda, venv, then the site's own lines; one that fails ends the job."""
    launch = plan.run.launch
    lines = [f"module load {shlex.quote(module)}" for module in launch.modules]
    if launch.conda:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(launch.conda)}"]
    if launch.venv:
        lines.append("# shellcheck source=/dev/null")
        lines.append(f". {shlex.quote(launch.venv + '/bin/activate')}")
    lines += launch.setup
    if not lines:
        return ""
    # Such lines, conda's among them, often read names that are not set.
    head = "# The environment on a node; a line that fails ends the job."
    return "\n".join([head, "set -e +u", *lines, "set +e -u"])


def export_lines(variables: Sequence[Variable], secrets: Sequence[str], machine: Machine) -> str:
    """Variables with their reasons, the launcher's code, and secrets by name only."""
    lines = [
        line
        for variable in variables
        for line in (f"# {variable.why}", f"export {variable.name}={shlex.quote(variable.value)}")
    ]
    if machine.package.parent.name not in ("site-packages", "dist-packages"):
        lines.append("# the code that was planned is the code that runs")
        lines.append(
            f"export PYTHONPATH={shlex.quote(str(machine.package.parent))}"
            '"${PYTHONPATH:+:$PYTHONPATH}"'
        )
    for name in secrets:
        lines.append("# a secret: its value comes from the shell that submitted, and is not here")
        lines.append(f': "${{{name}:?is not set: submit from a shell that has it}}"')
    return "\n".join(lines)


def without_gaps(text: str) -> str:
    """One empty line where holes left several."""
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text
