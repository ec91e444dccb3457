"""What one layout and engine saved, every other continues: as if nothing had happened."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.checkpoint.boxes import whole
from launcher.checkpoint.reader import Checkpoint, list_checkpoints, verify
from launcher.plan.costs import count_parameters
from tests.factory import make_run
from tests.runtime.checkpoints import Job, Trained, case, work_all
from tests.runtime.parity import MODELS as PARITY_MODELS
from tests.runtime.parity import Case
from tests.runtime.spawn import run_ranks

SCALARS = 1e-6
"""Relative, in float32: rounding of another order of summation."""

HOME = {"tp": 2, "pp": 2, "dp": 2, "zero": 1}
HOME_IN_BF16 = {"tp": 2, "dp": 2, "zero": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "tp4": {"tp": 4, "zero": 1, "model": "one_kv_head"},
    "pp4": {"pp": 4, "zero": 1},
    "dp8": {"dp": 8, "zero": 1},
    "replicas": {"tp": 2, "dp": 2, "zero": 0},
    "zero2": {"dp": 4, "zero": 2},
    "zero3": {"dp": 4, "zero": 3},
    "tp2_zero3": {"tp": 2, "dp": 2, "zero": 3, "model": "one_kv_head"},
    "fsdp2": {"dp": 4, "zero": 3, "engine": "fsdp2"},
    "fsdp2_pipeline": {
        "tp": 2, "pp": 2, "dp": 2, "zero": 3, "engine": "fsdp2", "model": "one_kv_head",
    },
    "context": {"cp": 2, "dp": 2, "zero": 0},
    "context_zero1": {"tp": 2, "cp": 2, "pp": 2, "zero": 1, "cp_mode": "ulysses"},
    "context_fsdp2": {"cp": 4, "zero": 3, "engine": "fsdp2", "model": "one_kv_head"},
    "one": {"zero": 0, "model": "one_kv_head"},
    "one_zero1": {"zero": 1},
    "interleaved": {
        "pp": 2, "vpp": 2, "zero": 1, "schedule": "interleaved_1f1b", "model": "one_kv_head",
    },
    "v_shaped": {"pp": 2, "vpp": 2, "zero": 0, "schedule": "zb_v"},
}  # fmt: skip
AND_BACK = ("tp4", "pp4", "zero2", "zero3", "fsdp2", "context", "one", "interleaved", "v_shaped")
IN_BF16 = ("zero2", "zero3", "fsdp2", "v_shaped")
MODELS = ("tied", "one_kv_head")
"""A tied table with padding and biases; kv heads that tp ranks share, and gates."""


def model_of(place: str) -> str:
    return str(OTHERS[place].get("model", "tied"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def run_jobs(jobs: dict[Any, Job]) -> dict[Any, list[Trained]]:
    """Results of every rank by key; jobs of a world size share their processes."""
    found: dict[Any, list[Trained]] = {}
    for size in sorted({job.case.world_size for job in jobs.values()}):
        keys = [key for key, job in jobs.items() if job.case.world_size == size]
        results = run_ranks(size, work_all, [jobs[key] for key in keys], timeout_s=400.0)
        for number, key in enumerate(keys):
            found[key] = [ranks[number] for ranks in results]
    return found


@cache
def story(root: Path, precision: str) -> dict[Any, list[Trained]]:
    """Two steps at home; from there one step elsewhere, and one more back at home."""
    models = MODELS if precision == "fp32" else MODELS[:1]
    others = OTHERS if precision == "fp32" else IN_BF16

    home = HOME if precision == "fp32" else HOME_IN_BF16

    def at(place: str, model: str) -> Case:
        layout = home if place == "home" else OTHERS[place]
        return case(**{**layout, "model": model, "precision": precision})

    def folder(*words: str) -> str:
        return str(root / "-".join((precision, *words)))

    found = run_jobs({("start", m): Job(at("home", m), None, folder(m), 0, 2) for m in models})
    jobs = {("whole", m): Job(at("home", m), None, None, 0, 4) for m in models}
    jobs |= {("again", m): Job(at("home", m), folder(m), None, 2, 2) for m in models}
    for place in others:
        model = model_of(place)
        jobs[place] = Job(
            at(place, model), folder(model), folder(place), 2, copy=folder("copy", place)
        )
    found |= run_jobs(jobs)
    back = [place for place in AND_BACK if place in others]
    return found | run_jobs(
        {("back", p): Job(at("home", model_of(p)), folder(p), None, 3) for p in back}
    )


def relative(one: float, other: float) -> float:
    return abs(one / other - 1.0)


@pytest.mark.parametrize("place", OTHERS)
def test_the_next_step_elsewhere_is_that_of_the_uninterrupted_run(root, place):
    whole_course = story(root, "fp32")["whole", model_of(place)][0]
    for trained in story(root, "fp32")[place]:
        assert relative(trained.losses[0], whole_course.losses[2]) < SCALARS
        assert relative(trained.grad_norms[0], whole_course.grad_norms[2]) < SCALARS


@pytest.mark.parametrize("place", AND_BACK)
def test_and_the_step_after_it_back_at_home_too(root, place):
    whole_course = story(root, "fp32")["whole", model_of(place)][0]
    for trained in story(root, "fp32")["back", place]:
        assert relative(trained.losses[0], whole_course.losses[3]) < SCALARS
        assert relative(trained.grad_norms[0], whole_course.grad_norms[3]) < SCALARS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_layout_continues_bit_for_bit(root, precision):
    found = story(root, precision)
    for model in MODELS if precision == "fp32" else MODELS[:1]:
        pairs = zip(found["whole", model], found["again", model], strict=True)
        for undisturbed, resumed in pairs:
            assert resumed.losses == undisturbed.losses[2:]
            assert resumed.grad_norms == undisturbed.grad_norms[2:]
            for name, weights in undisturbed.weights.items():
                assert (weights == resumed.weights[name]).all(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loading_and_saving_elsewhere_changes_no_bit_of_weights_and_moments(root, precision):
    story(root, precision)
    for place in OTHERS if precision == "fp32" else IN_BF16:
        start = only(root / f"{precision}-{model_of(place)}")
        copy = only(root / f"{precision}-copy-{place}")
        assert start.manifest.tensors.keys() == copy.manifest.tensors.keys()
        for name, record in start.manifest.tensors.items():
            box = whole(record.shape)
            assert np.array_equal(start.read(name, box), copy.read(name, box)), (place, name)


def test_every_byte_is_written_once_and_the_writing_is_spread(root):
    story(root, "fp32")
    for place, num_files in {"tied": 8, "replicas": 4, "dp8": 8, "zero3": 4}.items():
        manifest = only(root / f"fp32-{place}").manifest
        held = sum(np.prod(record.shape) for record in manifest.tensors.values())
        written = sum(
            piece.box.num_elements
            for record in manifest.tensors.values()
            for piece in record.pieces
        )
        assert held == written
        assert 4 * held == 12 * count_parameters(make_run(model=PARITY_MODELS["tied"]).model)
        sizes = [file.size for file in manifest.files.values()]
        assert len(sizes) == num_files
        if place != "tied":  # its stages are of different size
            assert max(sizes) < 1.5 * min(sizes)


def test_a_checkpoint_holds_float32_weights_and_both_moments_under_full_names(root):
    story(root, "bf16")
    checkpoint = only(root / "bf16-tied")
    assert checkpoint.manifest.kinds == ("weight", "exp_avg", "exp_avg_sq")
    assert "weight/layers.3.attention.q_proj.weight" in checkpoint.manifest.tensors
    assert checkpoint.manifest.tensors["weight/embedding.tokens.weight"].shape == (97, 32)
    assert not any(name.startswith("weight/head") for name in checkpoint.manifest.tensors)
    values = checkpoint.source("weight").read("layers.0.mlp.up_proj.weight", (0, 0), (8, 8))
    assert values.dtype == np.float32
    assert (values.view(np.uint32) & 0xFFFF).any(), "these are rounded to bfloat16"
    assert verify(checkpoint.folder) is None


def test_momentum_is_continued_under_another_engine(tmp_path):
    def job(layout: dict[str, int], source: str | None, target: str | None, first: int, n: int):
        names = [None if name is None else str(tmp_path / name) for name in (source, target)]
        return Job(case(**layout, model="untied"), *names, first, n, "momentum")

    one = {"zero": 0}
    found = run_jobs({"start": job({"dp": 2, "zero": 1}, None, "start", 0, 2)})
    found |= run_jobs(
        {
            "whole": job(one, None, None, 0, 3),
            "one": job(one, "start", None, 2, 1),
            "zero3": job({"dp": 2, "zero": 3}, "start", None, 2, 1),
        }
    )
    assert only(tmp_path / "start").manifest.kinds == ("weight", "momentum")
    for name in ("one", "zero3"):
        for trained in found[name]:
            assert relative(trained.losses[0], found["whole"][0].losses[2]) < SCALARS
            assert relative(trained.grad_norms[0], found["whole"][0].grad_norms[2]) < SCALARS


def only(run: Path) -> Checkpoint:
    (name,) = list_checkpoints(run / "checkpoints")
    return Checkpoint(run / "checkpoints" / name)
