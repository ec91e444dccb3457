"""Every recipe composes, plans and renders to the text that lies beside this test.

After a change that is meant: UPDATE_GOLDEN=1 pytest tests/test_golden.py, and read the diff.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.assets import assets_dir
from launcher.config.load import load_run
from launcher.config.local_hardware import LocalMachine
from launcher.plan.build import build_plan
from launcher.plan.report import render_report
from launcher.render.bundle import render_bundle
from tests.submit.cases import submitting_machine

GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(path.stem for path in (assets_dir() / "recipes").glob("*.yaml"))
# A machine that is the same wherever the test runs.
MACHINE = LocalMachine(
    gpus=(), cores=2, clock_hz=2.5e9, flops_per_cycle=32, memory_bytes=16 * 2**30
)
RUN_DIR = Path("/runs/golden")


def rendered(recipe: str, submitter: str) -> dict[str, str]:
    """All texts of a recipe by file name, and the report."""
    loaded = load_run([f"recipe={recipe}", f"launch={submitter}"], machine=lambda: MACHINE)
    plan = build_plan(loaded.run)
    bundle = render_bundle(plan, RUN_DIR, submitting_machine())
    texts = {path.name: text for path, text in bundle.texts.items()}
    plan = replace(plan, decisions=(*loaded.decisions, *plan.decisions))
    return texts | {"report.txt": render_report(plan).rstrip("\n") + "\n"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_renders_to_its_golden_text(recipe):
    texts = rendered(recipe, "local")
    texts["job.sbatch"] = rendered(recipe, "slurm")["job.sbatch"]
    del texts["plan.json"]  # the report shows what matters of it
    folder = GOLDEN / recipe
    if os.environ.get("UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
    assert {path.name for path in folder.iterdir()} == set(texts)
    for name, text in texts.items():
        assert text == (folder / name).read_text(), f"{recipe}/{name}"


def test_no_golden_folder_is_left_of_a_recipe_that_is_gone():
    assert sorted(path.name for path in GOLDEN.iterdir()) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_its_hardware_without_warnings(recipe):
    plan = build_plan(load_run([f"recipe={recipe}"], machine=lambda: MACHINE).run)
    assert plan.memory.fits
    assert plan.warnings == ()
