"""A planned and rendered run to write and to follow, without a process."""

from __future__ import annotations

from pathlib import Path

from launcher.config.assets import slurm_templates
from launcher.plan.build import build_plan
from launcher.plan.records import Plan
from launcher.render.bundle import Bundle, Machine, render_bundle
from tests.factory import CPU, make_run


def planned(**overrides: object) -> Plan:
    """The tiny model at tp=2 x pp=2 on four CPU processes, unless overridden."""
    defaults = {"parallelism": {"tp": 2, "pp": 2, "dp": 1}, "hardware": CPU | {"gpus_per_node": 4}}
    return build_plan(make_run(**{**defaults, **overrides}))


def bundled(root: Path, plan: Plan | None = None, python: str = "python3") -> Bundle:
    return render_bundle(plan or planned(), root, submitting_machine(python))


def submitting_machine(python: str = "python3") -> Machine:
    """The same wherever the test runs."""
    return Machine(
        python=python,
        cores=2,
        package=Path("/code/launcher"),
        code="commit 0123456789ab",
        slurm_templates=slurm_templates(),
    )
