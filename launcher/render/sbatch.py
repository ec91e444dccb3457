"""The Slurm scripts: header, environment and one agent per node, from readable templates."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from string import Template

from launcher.plan.records import Plan
from launcher.render.container import container_options
from launcher.render.firewall import render_firewall
from launcher.render.header import header_options, render_header
from launcher.render.machine import Machine
from launcher.render.shell_lines import (
    describe_workers,
    export_lines,
    interpreter,
    node_variables,
    setup_lines,
    without_gaps,
)


def render_sbatch(plan: Plan, run_dir: Path, name: str, machine: Machine) -> str:
    """`job.sbatch`.

    Args:
        plan: what runs.
        run_dir: absolute path of the run directory, visible on every node.
        name: of the job where launch.job_name is open.
        machine: where the script is made.

    """
    launch = plan.run.launch
    variables = node_variables(plan)
    names = [variable.name for variable in variables] + list(launch.secrets)
    holes = {
        "title": describe_workers(plan, machine),
        "options": render_header(header_options(plan, run_dir / "logs", name)),
        "run_dir": shlex.quote(str(run_dir)),
        "python": shlex.quote(interpreter(plan, machine)),
        "firewall": render_firewall(plan.run.parallelism.engine == "fsdp2"),
        "setup": setup_lines(plan),
        "exports": export_lines(variables, launch.secrets, machine),
        "srun_options": _srun_options(plan),
    }
    if launch.container is not None:
        holes |= {
            "names": " ".join(names),
            "container_options": container_options(plan, run_dir, machine.package, names),
            "container_python": shlex.quote(launch.container_python),
        }
    template = machine.slurm_templates[launch.container or "bare"]
    return without_gaps(Template(template).substitute(holes))


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
