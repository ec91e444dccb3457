"""All texts of a run directory, rendered from one plan: what a dry run shows is what runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from launcher.config.schema import Run
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles
from launcher.render.deepspeed import render_deepspeed_config
from launcher.render.hosts import render_host_script
from launcher.render.machine import Machine
from launcher.render.sbatch import render_sbatch
from launcher.render.torchrun import WORKER, render_command

__all__ = ["Bundle", "Machine", "render_bundle", "render_run", "run_name"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The files of one run, not yet written."""

    files: RunFiles
    texts: dict[Path, str]
    """Absolute path -> content."""
    script: Path
    """The one that is run or submitted."""


def render_bundle(plan: Plan, run_dir: Path, machine: Machine, module: str = WORKER) -> Bundle:
    """Every file of the run directory that exists before the job starts.

    `module` is what every rank runs.
    """
    files = RunFiles(root=run_dir)
    if plan.run.launch.name == "slurm":
        script = files.job
        text = render_sbatch(plan, run_dir, run_name(plan.run), machine)
    elif plan.run.launch.name in ("torchrun", "mpirun"):
        script, text = files.command, render_host_script(plan, run_dir, machine)
    else:
        script = files.command
        text = render_command(plan, run_dir, machine.python, machine.cores, module)
    texts = {
        files.run: render_run(plan.run),
        files.plan: json.dumps(plan.to_json(), indent=1) + "\n",
        script: text,
    }
    if plan.layout.engine == "deepspeed":
        config = render_deepspeed_config(plan.run, plan.layout)
        texts[files.deepspeed] = json.dumps(config, indent=2) + "\n"
    return Bundle(files=files, texts=texts, script=script)


def render_run(run: Run) -> str:
    """run.yaml: the resolved configuration, keys in the order of the schema."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_name(run: Run) -> str:
    """What the run is called: its own name, its recipe's or its model's."""
    return run.name or run.recipe or run.model.name
