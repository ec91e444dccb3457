"""The oracle: the same model trained by plain torch in one process, without any engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from launcher.config.schema import Model, Run
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout, Stage
from launcher.runtime.groups import build_groups
from launcher.runtime.model.stage import build_stage
from launcher.runtime.optimizer import build_optimizer, learning_rate, set_learning_rate
from launcher.runtime.pipeline.execute import Microbatch


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a layout must reproduce."""

    losses: tuple[float, ...]
    """Mean loss of each step, before its update."""
    grad_norms: tuple[float, ...]
    """Global gradient norm of each step, before clipping."""
    gradients: dict[str, Tensor]
    """Of the first step, before clipping, by full logical name."""
    weights: dict[str, Tensor]
    """After the last step, by full logical name."""


def train_reference(run: Run, layout: Layout, steps: Iterable[Sequence[Microbatch]]) -> Reference:
    """Train on these steps, each the microbatches of all replicas, and write everything down."""
    single = single_layout(layout)
    groups = build_groups(single, build_mesh(single), torch.device("cpu"), run.model.tie_embeddings)
    module = build_stage(run, single, whole_model(run), groups)
    optimizer = build_optimizer(module.parameters(), run.optimizer)
    losses, norms = [], []
    gradients: dict[str, Tensor] = {}
    for step, microbatches in enumerate(steps):
        total = 0.0
        for microbatch in microbatches:
            loss = module(microbatch.tokens_BS, microbatch.context) / len(microbatches)
            loss.backward()
            total += loss.item()
        if not gradients:
            gradients = {n: p.grad.clone() for n, p in module.named_parameters()}  # type: ignore[union-attr]
        limit = run.optimizer.clip_grad_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), limit).item())
        losses.append(total)
        set_learning_rate(optimizer, learning_rate(run.optimizer, step, run.train.steps))
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    return Reference(
        losses=tuple(losses), grad_norms=tuple(norms), gradients=gradients, weights=weights
    )


def is_arbitrary(model: Model, name: str) -> bool:
    """Whether a parameter changes no output, so that its gradient is rounding noise.

    A key bias adds the same to all scores of a query, which softmax takes out again; rotary
    positions come between the two. Adam turns the noise into steps of full length.
    """
    return name.endswith("attention.k_proj.bias") and model.position != "rope"


def single_layout(layout: Layout) -> Layout:
    """The same step in one process: every replica's microbatches one after the other."""
    return replace(
        layout,
        world_size=1, nodes=1, gpus_per_node=1, tp=1, cp=1, ep=1, pp=1, vpp=1, dp=1, zero_stage=0,
        engine="deepspeed",
        num_microbatches=layout.num_microbatches * layout.dp, recompute="none",
    )  # fmt: skip


def whole_model(run: Run) -> Stage:
    """One stage with everything in it."""
    return Stage(
        stage=0,
        first_layer=0,
        end_layer=run.model.num_layers,
        parameters=0,
        is_first=True,
        is_last=True,
    )
