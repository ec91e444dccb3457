"""Does `train.init_from` give every layout and engine the same weights, from either format?"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.schema import Model
from launcher.convert.convert import Conversion, convert
from launcher.convert.source import open_weights, weights_folder
from launcher.runtime.checkpoint.load import load_weights
from tests.convert.folders import random_weights, write_checkpoint
from tests.runtime.checkpoints import case
from tests.runtime.parity import MODELS, Case, build_worker, reference
from tests.runtime.spawn import run_ranks

FORMATS = ("hf", "launch")
LAYOUTS = {
    1: [case(), case(zero=1), case(precision="bf16", zero=1)],
    2: [
        case(tp=2), case(pp=2, zero=1), case(dp=2, zero=1), case(dp=2, zero=2), case(dp=2, zero=3),
        case(tp=2, precision="bf16"), case(pp=2, schedule="zb_v", vpp=2),
    ],
    4: [case(tp=2, dp=2, zero=1), case(tp=4), case(tp=2, pp=2, zero=1, model="untied")],
}  # fmt: skip
MODEL_NAMES = ("tied", "untied")
GRID = [
    (world, Case(**{**vars(layout), "model": name}), format)
    for world, layouts in LAYOUTS.items()
    for layout in layouts
    for name, format in zip(MODEL_NAMES, FORMATS, strict=True)
]


def measure(rank: int, jobs: list[tuple[Case, str]]) -> list[tuple[float, float]]:
    """Loss and gradient norm of the first step, from the weights of each folder."""
    found = []
    for job, folder in jobs:
        with contextlib.redirect_stdout(io.StringIO()):
            worker = build_worker(job)
        weights = open_weights(*weights_folder(Path(folder)))
        load_weights(worker.engine, weights.source)
        loss = worker.accumulate(0).item()
        found.append((loss, worker.engine.step(worker.learning_rate(0))))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """Random weights of both models in both formats."""
    root, made = tmp_path_factory.mktemp("weights"), {}
    for name in MODEL_NAMES:
        model = Model.model_validate(MODELS[name])
        weights = {key: 0.3 * values for key, values in random_weights(model).items()}
        write_checkpoint(root / f"{name}_launch", model, weights)
        source, target = root / f"{name}_launch", root / f"{name}_hf"
        convert(Conversion(source=source, destination=target, max_shard_size="30KB"))
        made |= {(name, format): str(root / f"{name}_{format}") for format in FORMATS}
    return made


@pytest.fixture(scope="module")
def measured(folders):
    """Results of a world size, in processes that are started once."""

    @cache
    def of(world: int) -> list[tuple[float, float]]:
        jobs = [(job, folders[job.model, format]) for size, job, format in GRID if size == world]
        return run_ranks(world, measure, jobs, timeout_s=300)[0]

    return of


@pytest.mark.parametrize(
    ("world", "job", "format"), GRID, ids=[f"{job}-{format}" for _, job, format in GRID]
)
def test_every_layout_starts_with_the_same_loss(world, job, format, measured, folders):
    same = [row for row in GRID if row[0] == world]
    loss, norm = measured(world)[same.index((world, job, format))]
    alone = [row for row in GRID if row[0] == 1 and row[1].model == job.model]
    reference = [row for row in GRID if row[0] == 1].index(alone[0])
    expected_loss, expected_norm = measured(1)[reference]
    tolerance = 1e-5 if job.precision == "fp32" else 2e-2
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert norm == pytest.approx(expected_norm, rel=tolerance if tolerance == 1e-5 else 0.1)


def test_the_weights_are_not_those_of_the_seed(measured):
    """Or all layouts would agree whatever was loaded."""
    losses = [loss for loss, _ in measured(1)]
    for (_, job, _), loss in zip([row for row in GRID if row[0] == 1], losses, strict=True):
        if job.precision == "fp32":
            assert abs(loss / reference(Case(**{**vars(job), "zero": 0})).losses[0] - 1) > 1e-2


def launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=cwd, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def first_entry(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])


def test_a_run_starts_from_weights_and_then_from_its_own_checkpoints(tmp_path):
    """The command as typed: Hugging Face -> run -> its checkpoint -> another run, and a resume."""
    model = Model.model_validate(MODELS["untied"] | {"vocab_size": 256})
    weights = {key: 0.3 * values for key, values in random_weights(model).items()}
    write_checkpoint(tmp_path / "seed", model, weights)
    convert(Conversion(source=tmp_path / "seed", destination=tmp_path / "hf"))
    convert(Conversion(source=tmp_path / "hf", destination=tmp_path / "mine"))
    common = (
        "--config-dir", "mine/conf", "model=mine", "precision=fp32", "hardware=local",
        "hardware.device=cpu", "train.sequence_length=32", "train.validation_batches=0",
        "train.steps=1", "train.global_batch_size=4", "train.micro_batch_size=1",
        "checkpoint.every_steps=1", "parallelism=single",
    )  # fmt: skip
    done = launch(*common, "train.init_from=hf", "--run-dir", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train.init_from=/" in done.stdout
    assert "LlamaForCausalLM, 39 tensors" in done.stdout
    assert f"init_from: {tmp_path}/hf" in (tmp_path / "one" / "run.yaml").read_text()
    # The same weights from our own format, over two ranks.
    two = ("parallelism.tp=2", "train.init_from=mine", "--run-dir", "two")
    assert launch(*common, *two, cwd=tmp_path).returncode == 0
    one, other = first_entry(tmp_path / "one"), first_entry(tmp_path / "two")
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    # What the first run has learned is where a third begins.
    more = ("train.init_from=one", "--run-dir", "three")
    assert launch(*common, *more, cwd=tmp_path).returncode == 0
    assert first_entry(tmp_path / "three")["loss"] < one["loss"]
    assert "one/checkpoints/step_00000001" in (tmp_path / "three" / "run.yaml").read_text()
    # A run with checkpoints goes on from them; its first weights are not looked for again.
    for path in (tmp_path / "hf").iterdir():
        path.unlink()
    changed = launch("resume", "one", "train.steps=2", "train.init_from=mine", cwd=tmp_path)
    assert changed.returncode == 2
    assert "train.init_from=mine [forbidden-on-resume]" in changed.stderr
    again = launch("resume", "one", "train.steps=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    entries = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").open()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.init_from=nowhere",), "train.init_from={cwd}/nowhere [weights-readable]: there"),
        (("model.num_layers=3", "train.init_from=hf"), "layers.3.mlp.down_proj.weight [weights-fit-"
         "model]: this model has no such tensor"),
        (("model.num_heads=8", "model.num_kv_heads=4", "train.init_from=hf"),
         "model.num_heads=8 [weights-fit-model]: the weights in {cwd}/hf were made with 4. Try "
         "model.num_heads=4."),
        (("hardware=h100x8", "train.init_from=nowhere"), "a relative path would mean another"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_first(words, said, tmp_path, capsys, monkeypatch):
    model = Model.model_validate(MODELS["untied"] | {"vocab_size": 256})
    write_checkpoint(tmp_path / "seed", model, random_weights(model))
    convert(Conversion(source=tmp_path / "seed", destination=tmp_path / "hf"))
    convert(Conversion(source=tmp_path / "hf", destination=tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config-dir", "mine/conf", "model=mine", *words]) == 2
    assert said.format(cwd=tmp_path) in capsys.readouterr().err


def test_weights_elsewhere_are_left_to_the_job_and_other_facts_are_said(tmp_path, capsys):
    model = Model.model_validate(MODELS["untied"] | {"vocab_size": 256})
    write_checkpoint(tmp_path / "seed", model, random_weights(model))
    words = ["plan", "model=llama3_8b", "hardware=h100x8", "train.init_from=/nowhere/llama"]
    assert main(words) == 0
    assert "not on this machine" in " ".join(capsys.readouterr().out.split())
    fields = [f"model.{k}={'null' if v is None else v}" for k, v in MODELS["untied"].items()]
    facts = [field for field in fields if not field.startswith("model.name")]
    words = ["plan", "model=tiny", *facts, "model.vocab_size=256", "model.rope_theta=5e5"]
    assert main([*words, f"train.init_from={tmp_path}/seed"]) == 0
    assert "init-from-differs" in capsys.readouterr().out
