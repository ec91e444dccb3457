"""Packed documents against each document alone, and in every layout against one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.plan.mesh import build_mesh
from launcher.plan.schedule import build_schedule
from launcher.render.deepspeed import render_deepspeed_config
from launcher.runtime.build import Trainer, has_queue
from launcher.runtime.data import open_datasets
from launcher.runtime.engine import build_engine
from launcher.runtime.frozen import Frozen
from launcher.runtime.groups import build_groups
from launcher.runtime.model import build_stage
from launcher.runtime.parallel.cross_entropy import IGNORED
from launcher.runtime.pipeline.execute import average_loss
from launcher.runtime.pipeline.p2p import build_channels
from launcher.runtime.progress import Progress
from launcher.runtime.reference import single_layout, train_reference
from launcher.runtime.train import train_step, validate
from tests.data.made import make_documents, make_store
from tests.factory import TINY, TINY_GPT, make_run
from tests.runtime.spawn import run_ranks
from tests.runtime.stages import make_layout, make_module, make_stage

MODELS: dict[str, dict[str, Any]] = {
    "rope": TINY | {"vocab_size": 257, "num_layers": 4},
    "learned_tied": TINY_GPT | {"vocab_size": 257, "num_layers": 4},
    "window": TINY | {"vocab_size": 257, "num_layers": 4, "sliding_window": 5},
}
STEPS = 3


def no_barrier() -> None:
    pass


def run_on(store: Path, model: str, **overrides: Any):
    data = {
        "name": "store", "kind": "store", "path": str(store), "packing": "documents",
        "validation_fraction": 0.2,
    }  # fmt: skip
    optimizer = {"name": "adamw", "learning_rate": 1e-2, "clip_grad_norm": 0.2, "eps": 1e-4}
    return make_run(
        model=MODELS[model], data=data, optimizer=optimizer, **{"train.steps": STEPS}, **overrides
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("packing") / "store", make_documents(300, longest=9))


@pytest.mark.parametrize("model", MODELS)
def test_packed_documents_have_the_losses_of_each_document_alone(store: Path, model: str) -> None:
    layout = make_layout(micro_batch_size=3)
    run = run_on(store, model)
    batches = open_datasets(run, layout, store, True, no_barrier).train
    (microbatch,) = batches.step_samples(Progress(), layout, 0)
    module, _ = make_module(MODELS[model], layout)
    context = microbatch.context
    packed = module(microbatch.tokens_BS, context)
    packed.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()

    total, count = torch.zeros(()), 0
    for tokens, labels, documents in zip(
        microbatch.tokens_BS, context.labels_BS, context.documents_BS, strict=True
    ):
        for document in documents.unique():
            here = (documents == document) & (labels != IGNORED)
            if not here.any():
                continue
            alone = type(context)(labels_BS=labels[here][None], step=0, first_sample=0)
            total = total + module(tokens[here][None], alone) * int(here.sum())
            count += int(here.sum())
    alone = total / count
    alone.backward()
    assert count == context.num_labels < microbatch.tokens_BS.numel()
    assert torch.allclose(packed, alone, rtol=1e-6)
    for name, parameter in module.named_parameters():
        gap = (parameter.grad - gradients[name]).norm() / parameter.grad.norm().clamp(min=1e-3)
        assert gap < 1e-5, name


def test_labels_at_borders_count_nowhere_and_all_others_do(store: Path) -> None:
    layout = make_layout(micro_batch_size=4, num_microbatches=2, dp=2)
    batches = open_datasets(run_on(store, "rope"), layout, store, True, no_barrier).train
    microbatches = [m for i in range(2) for m in batches.step_samples(Progress(), layout, i)]
    counted = 0
    for microbatch in microbatches:
        labels, documents = microbatch.context.labels_BS, microbatch.context.documents_BS
        is_end = microbatch.tokens_BS == 256
        assert torch.equal(is_end, labels == IGNORED)
        assert torch.equal(documents[:, 1:] != documents[:, :-1], is_end[:, :-1])
        counted += int((labels != IGNORED).sum())
    assert {m.context.num_labels for m in microbatches} == {counted / len(microbatches)}


CASES = [
    {"tp": 2}, {"pp": 2}, {"dp": 2}, {"dp": 2, "zero_stage": 2}, {"dp": 2, "zero_stage": 3},
    {"tp": 2, "pp": 2, "dp": 2, "zero_stage": 1},
    {"pp": 2, "vpp": 2, "schedule": "zb_v"}, {"pp": 2, "recompute": "full"},
    {"tp": 2, "recompute": "selective"},
]  # fmt: skip
MODEL_OF = ("learned_tied", "rope", "window")


def case_layout(case: dict[str, Any]):
    # The same eight samples in every step.
    sizes = {"micro_batch_size": 1, "num_microbatches": 8 // case.get("dp", 1)}
    return make_layout(**sizes, **case)


def build_trainer(case: dict[str, Any], model: str, folder: str) -> Trainer:
    layout = case_layout(case)
    run = run_on(Path(folder), model, **{"train.validation_batches": 2})
    groups = build_groups(
        layout, build_mesh(layout), torch.device("cpu"), run.model.tie_embeddings,
        run.model.kv_heads,
    )  # fmt: skip
    schedule = build_schedule(layout.schedule, layout.pp, layout.num_microbatches, layout.vpp)
    stage = make_stage(run.model.num_layers, groups.pp.index, layout.pp, schedule.chain)
    config = render_deepspeed_config(run, layout)
    module = build_stage(run, layout, stage, groups, has_queue(run, layout, schedule))
    shape = (layout.micro_batch_size, layout.sequence_length, run.model.hidden_size)
    frozen = Frozen(run=run, layout=layout, stages=(), schedule=schedule, plan={}, ds_config=config)
    return Trainer(
        frozen=frozen,
        groups=groups,
        engine=build_engine(module, run, layout, groups, config),
        channels=build_channels(groups, shape, torch.float32, schedule.chain),
        data=open_datasets(run, layout, Path(folder), True, no_barrier),
    )


def train_case(rank: int, case: dict[str, Any], model: str, folder: str) -> dict[str, Any]:
    trainer = build_trainer(case, model, folder)
    found: dict[str, Any] = {"validation": validate(trainer), "losses": [], "norms": []}
    progress = Progress()
    for _ in range(STEPS):
        loss, norm = train_step(trainer, progress, 1e-2)
        progress = progress.after(8)
        found["losses"].append(float(average_loss(loss, trainer.groups)))
        found["norms"].append(norm)
    return found


@pytest.fixture(scope="module")
def alone(store: Path) -> dict[str, Any]:
    """One process, by model."""
    return {model: train_case(0, {}, model, str(store)) for model in MODELS}


def test_one_process_is_what_plain_torch_computes(store: Path, alone: Any) -> None:
    run, layout = run_on(store, "rope"), case_layout({})
    batches = open_datasets(run, layout, store, True, no_barrier).train
    places = [Progress(step=step, consumed_samples=8 * step) for step in range(STEPS)]
    steps = [batches.step_samples(place, single_layout(layout), 0) for place in places]
    oracle = train_reference(run, layout, steps)
    assert np.allclose(alone["rope"]["losses"], oracle.losses, rtol=1e-5)
    assert np.allclose(alone["rope"]["norms"], oracle.grad_norms, rtol=1e-5)


def train_cases(rank: int, numbers: list[int], folder: str) -> dict[int, Any]:
    return {n: train_case(rank, CASES[n], MODEL_OF[n % 3], folder) for n in numbers}


@cache
def found_by_ranks(world_size: int, folder: str) -> list[dict[int, Any]]:
    """All cases of a world size in processes that are started once."""
    sizes = [case_layout(case).world_size for case in CASES]
    numbers = [number for number, size in enumerate(sizes) if size == world_size]
    return run_ranks(world_size, train_cases, numbers, folder, timeout_s=300.0)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_documents_train_and_validate_alike_in_every_layout(
    store: Path, alone: Any, number: int
) -> None:
    expected = alone[MODEL_OF[number % 3]]
    for found in found_by_ranks(case_layout(CASES[number]).world_size, str(store)):
        for key in ("losses", "norms", "validation"):
            assert np.allclose(found[number][key], expected[key], rtol=1e-5), key
