"""The Slurm scripts: header, environment and one agent per node, from readable templates."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from string import Template

from launcher.plan.records import Plan
from launcher.render.container import container_options
from launcher.render.environment import Variable, worker_environment
from launcher.render.firewall import render_firewall
from launcher.render.header import header_options, render_header
from launcher.render.machine import Machine


def render_sbatch(plan: Plan, run_dir: Path, name: str, machine: Machine) -> str:
    """`job.sbatch`.

    Args:
        plan: what runs.
        run_dir: absolute path of the run directory, visible on every node.
        name: of the job where launch.job_name is open.
        machine: where the script is made.

    """
    launch = plan.run.launch
    variables = _variables(plan)
    names = [variable.name for variable in variables] + list(launch.secrets)
    holes = {
        "title": _title(plan, machine),
        "options": render_header(header_options(plan, run_dir / "logs", name)),
        "run_dir": shlex.quote(str(run_dir)),
        "python": shlex.quote(_python(plan, machine)),
        "firewall": render_firewall(plan.run.parallelism.engine == "fsdp2"),
        "setup": _setup(plan),
        "exports": _exports(variables, launch.secrets, machine),
        "srun_options": _srun_options(plan),
    }
    if launch.container is not None:
        holes |= {
            "names": " ".join(names),
            "container_options": container_options(plan, run_dir, machine.package, names),
            "container_python": shlex.quote(launch.container_python),
        }
    template = machine.slurm_templates[launch.container or "bare"]
    return _without_gaps(Template(template).substitute(holes))


def render_array(plans: Sequence[Plan], folder: Path, name: str, machine: Machine) -> str:
    """`array.sbatch`: one job array whose tasks run the scripts of the run directories 0, 1...

    Args:
        plans: of the tasks; they ask the queue for the same.
        folder: holds the run directories.
        name: of the job where launch.job_name is open.
        machine: where the script is made.

    """
    first = plans[0]
    limit = first.run.launch.array_limit
    tasks = f"0-{len(plans) - 1}" + (f"%{limit}" if limit else "")
    logs = folder / "TASK" / "logs"
    options = header_options(first, logs, name)
    # sbatch(1): %A is the array's id, %a the task's number.
    output = str(folder).replace("%", "%%") + "/%a/logs/slurm-%A_%a.log"
    options = [("output", output) if key == "output" else (key, value) for key, value in options]
    return Template(machine.slurm_templates["array"]).substitute(
        title=f"{len(plans)} runs as one job array.",
        options=render_header([*options, ("array", tasks)]),
        runs="\n".join(
            f"    {shlex.quote(str(folder / str(number)))}" for number in range(len(plans))
        ),
    )


def _title(plan: Plan, machine: Machine) -> str:
    layout = plan.layout
    nodes = f"{layout.nodes} node{'' if layout.nodes == 1 else 's'}"
    return f"{layout.world_size} workers on {nodes}. Code: {machine.code}."


def _python(plan: Plan, machine: Machine) -> str:
    launch = plan.run.launch
    if launch.python is not None:
        return launch.python
    return "python" if launch.conda or launch.venv else machine.python


def _variables(plan: Plan) -> tuple[Variable, ...]:
    # Cores of the nodes are unknown here; the default is one per rank.
    cores = plan.run.launch.cpus_per_task or plan.layout.gpus_per_node
    return worker_environment(plan, cores)


def _setup(plan: Plan) -> str:
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


def _exports(variables: Sequence[Variable], secrets: Sequence[str], machine: Machine) -> str:
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


def _srun_options(plan: Plan) -> str:
    nodes, cores = plan.layout.nodes, plan.run.launch.cpus_per_task
    words = [
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        # Since Slurm 22.05 a step does not inherit it from its job.
        *([f"--cpus-per-task={cores}"] if cores else []),
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
    ]
    return " ".join(words)


def _without_gaps(text: str) -> str:
    """One empty line where holes left several."""
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text
