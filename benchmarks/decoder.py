"""The model, batch and stages that the step benchmarks have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from launcher.config.schema import Run
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout, Stage
from launcher.runtime.groups import Axis, Groups, build_groups
from launcher.runtime.model.context import ForwardContext
from launcher.runtime.pipeline.execute import Microbatch

LAYERS, HIDDEN, VOCABULARY, SEQUENCE, MICRO = 8, 256, 1024, 128, 4

DOCUMENT: dict[str, Any] = {
    "model": {
        "name": "benchmark", "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 4,
        "ffn_hidden_size": 2 * HIDDEN, "vocab_size": VOCABULARY, "max_sequence_length": SEQUENCE,
    },
    "hardware": {"name": "local", "device": "cpu"},
    "parallelism": {"name": "benchmark"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-4, "clip_grad_norm": 1.0},
    "data": {"name": "stdlib_text", "kind": "stdlib_text"},
    "train": {"steps": 1000},
    "precision": {"name": "fp32", "compute": "fp32"},
    "launch": {"name": "local"},
}  # fmt: skip


def make_run() -> Run:
    """A float32 decoder of 8 blocks with AdamW and clipping."""
    return Run.model_validate(DOCUMENT)


def make_layout(*, pp: int = 1, dp: int = 1, zero_stage: int = 0, num_microbatches: int) -> Layout:
    """A mesh of pp x dp processes on this machine."""
    return Layout(
        world_size=pp * dp, nodes=1, gpus_per_node=pp * dp, tp=1, cp=1, ep=1, pp=pp, vpp=1, dp=dp,
        zero_stage=zero_stage, micro_batch_size=MICRO, num_microbatches=num_microbatches,
        global_batch_size=MICRO * num_microbatches * dp, sequence_length=SEQUENCE,
        schedule="1f1b", recompute="none", order=("tp", "cp", "dp", "pp"),
    )  # fmt: skip


def make_stage(index: int, count: int) -> Stage:
    """One of `count` stages with equally many blocks."""
    blocks = LAYERS // count
    return Stage(
        stage=index, first_layer=index * blocks, end_layer=(index + 1) * blocks, parameters=0,
        is_first=index == 0, is_last=index == count - 1,
    )  # fmt: skip


def make_groups(layout: Layout) -> Groups:
    """Process groups of this rank."""
    return build_groups(layout, build_mesh(layout), torch.device("cpu"), tied=False)


def make_alone() -> Groups:
    """Groups of a process that is by itself: a module is built without any communication."""
    names = ("tp", "cp", "pp", "dp", "replicas", "model")
    axes = {name: Axis(name=name, index=0, size=1, ranks=(0,), group=None) for name in names}
    return Groups(rank=0, world_size=1, device=torch.device("cpu"), **axes)  # type: ignore[arg-type]


def make_microbatches(count: int, seed: int) -> list[Microbatch]:
    """Random tokens, the same for everyone who names the same seed."""
    generator = torch.Generator().manual_seed(seed)
    context = ForwardContext(labels_BS=None, step=0, first_sample=0)
    microbatches = []
    for index in range(count):
        window = torch.randint(VOCABULARY, (MICRO, SEQUENCE + 1), generator=generator)
        labels = window[:, 1:].contiguous()
        microbatches.append(
            Microbatch(
                tokens_BS=window[:, :-1].contiguous(),
                context=replace(context, labels_BS=labels, first_sample=index * MICRO),
            )
        )
    return microbatches
