"""Stage modules for tests: any layout by a few numbers, batches, and gradients by full name."""

from __future__ import annotations

from typing import Any

import torch

from launcher.config.schema import Run
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule_records import Chain
from launcher.runtime.groups import Groups, build_groups
from launcher.runtime.model import ForwardContext, StageModule, build_stage
from launcher.runtime.parallel.shard import Shard, local_shards
from tests.factory import TINY, TINY_GPT, make_run

LLAMA: dict[str, Any] = TINY | {"num_layers": 2, "vocab_size": 257}
"""kv heads 2: replicated at tp=4. Vocabulary odd: padded at every tp."""
GPT: dict[str, Any] = TINY_GPT | {"num_layers": 2, "vocab_size": 257}
LLAMA_TIED: dict[str, Any] = LLAMA | {"tie_embeddings": True, "bias": True, "sliding_window": 5}
GPT_UNTIED: dict[str, Any] = GPT | {"tie_embeddings": False, "num_kv_heads": 1}
MODELS = {"llama": LLAMA, "gpt": GPT, "llama_tied": LLAMA_TIED, "gpt_untied": GPT_UNTIED}


def make_layout(**sizes: Any) -> Layout:
    """A layout with every degree 1 unless told otherwise."""
    values: dict[str, Any] = {
        "nodes": 1, "tp": 1, "cp": 1, "ep": 1, "pp": 1, "vpp": 1, "dp": 1, "zero_stage": 0,
        "micro_batch_size": 2, "num_microbatches": 1, "sequence_length": 16, "schedule": "1f1b",
        "recompute": "none", "order": ("tp", "cp", "dp", "pp"),
    } | sizes  # fmt: skip
    world_size = values["tp"] * values["cp"] * values["pp"] * values["dp"]
    samples = values["micro_batch_size"] * values["num_microbatches"] * values["dp"]
    return Layout(
        world_size=world_size, gpus_per_node=world_size, global_batch_size=samples, **values
    )  # fmt: skip


def make_groups(run: Run, layout: Layout) -> Groups:
    return build_groups(
        layout, build_mesh(layout), torch.device("cpu"), run.model.tie_embeddings,
        kv_heads=run.model.kv_heads,
    )  # fmt: skip


def make_stage(
    num_layers: int, stage: int = 0, num_stages: int = 1, chain: Chain | None = None
) -> Stage:
    """An even split."""
    chain = chain or Chain(num_stages=num_stages)
    cut = [num_layers * index // chain.num_parts for index in range(chain.num_parts + 1)]
    parts = [chain.part(stage, chunk) for chunk in range(chain.num_chunks)]
    chunks = tuple((cut[part], cut[part + 1]) for part in parts)
    return Stage(
        stage=stage, first_layer=min(chunks)[0], end_layer=max(chunks)[1], parameters=0,
        is_first=parts[0] == 0, is_last=parts[-1] == chain.num_parts - 1,
        chunks=chunks if len(chunks) > 1 else (),
    )  # fmt: skip


def make_module(
    model: dict[str, Any], layout: Layout | None = None, **overrides: Any
) -> tuple[StageModule, Run]:
    """This rank's module of the only stage."""
    layout = layout or make_layout()
    run = make_run(model=model, **overrides)
    groups = make_groups(run, layout)
    return build_stage(run, layout, make_stage(run.model.num_layers), groups), run


def make_batch(vocab_size: int, layout: Layout | None = None) -> torch.Tensor:
    """Tokens and one more, [B, S + 1], the same on every rank."""
    layout = layout or make_layout()
    shape = (layout.micro_batch_size, layout.sequence_length + 1)
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(7))


def loss_and_gradients(
    module: StageModule, window: torch.Tensor, step: int = 0, first_sample: int = 0
) -> tuple[torch.Tensor, dict[str, tuple[Shard, torch.Tensor]]]:
    """The loss of one batch, and by local name every parameter's shard and gradient."""
    context = ForwardContext(labels_BS=window[:, 1:], step=step, first_sample=first_sample)
    loss = module(window[:, :-1], context)
    loss.backward()
    shards = local_shards(module)
    gradients = {name: (shards[name], p.grad) for name, p in module.named_parameters()}
    return loss.detach(), gradients


def cut_of(full: torch.Tensor, shard: Shard) -> torch.Tensor:
    """What a shard holds of the full tensor."""
    if shard.dim is None:
        return full
    return full.narrow(shard.dim, shard.start, shard.stop - shard.start)
