"""Our 1F1B step beside torch.distributed.pipelining's and DeepSpeed's, over the same blocks.

    python benchmarks/pipeline_step.py

pp=2 and pp=4, 8 microbatches, forward, backward and AdamW step. Each contestant has weights of its
own with the same values; the first losses are compared, so that all three do the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import machine, report, rounds_argument, run_ranks, time_in_turn
from decoder import (
    HIDDEN,
    LAYERS,
    MICRO,
    SEQUENCE,
    make_alone,
    make_groups,
    make_layout,
    make_microbatches,
    make_run,
    make_stage,
)
from torch import Tensor, nn

from launcher.plan.schedule import build_schedule
from launcher.render.deepspeed import render_deepspeed_config

NUM_MICROBATCHES = 8
Step = Callable[[], float | None]
"""One training step; its loss on the last stage."""


def compare(rank: int, rounds: int) -> None:
    pp = dist.get_world_size()
    contestants = {
        "launch": build_ours(rank, pp),
        "torch.distributed.pipelining": build_torch(rank, pp),
        "DeepSpeed PipelineEngine": build_deepspeed(rank, pp),
    }
    losses = {name: step() for name, step in contestants.items()}
    if rank == pp - 1:
        assert max(losses.values()) - min(losses.values()) < 1e-4, losses
    seconds = time_in_turn(contestants, rounds)
    if rank == 0:
        title = f"pp={pp}, 1F1B, {NUM_MICROBATCHES} microbatches; {machine()}"
        report(title, seconds, ours="launch")


def build_ours(rank: int, pp: int) -> Step:
    from launcher.runtime.build import has_queue
    from launcher.runtime.engine import build_engine
    from launcher.runtime.pipeline.execute import run_schedule
    from launcher.runtime.pipeline.p2p import build_channels

    run, layout = make_run(), make_layout(pp=pp, num_microbatches=NUM_MICROBATCHES)
    groups = make_groups(layout)
    schedule = build_schedule("1f1b", pp, NUM_MICROBATCHES)
    module = new_module(rank, pp, has_queue(run, layout, schedule))
    engine = build_engine(module, run, layout, groups, {})
    channels = build_channels(groups, (MICRO, SEQUENCE, HIDDEN), torch.float32)
    microbatches = make_microbatches(NUM_MICROBATCHES, seed=0)

    def step() -> float | None:
        with engine.accumulate():
            loss = run_schedule(schedule, engine, channels, rank, microbatches)
        engine.step(1e-4)
        return None if loss is None else float(loss)

    return step


def build_torch(rank: int, pp: int) -> Step:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    from launcher.runtime.optimizer import build_optimizer

    module = Sequential(new_module(rank, pp))
    stage = PipelineStage(module, rank, pp, torch.device("cpu"))
    schedule = Schedule1F1B(stage, NUM_MICROBATCHES, loss_fn=module.loss)
    parameters = list(module.parameters())
    optimizer = build_optimizer(parameters, make_run().optimizer)
    tokens, labels = whole_batch()

    def step() -> float | None:
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(tokens)
        elif rank == pp - 1:
            schedule.step(target=labels, losses=losses)
        else:
            schedule.step()
        clip_by_global_norm(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean().detach()) if losses else None

    return step


def clip_by_global_norm(parameters: list[nn.Parameter], limit: float) -> None:
    """Clip by the norm of the whole model, as ours and DeepSpeed's do.

    torch's pipelining leaves it to the loop; `clip_grad_norm_` alone would take each stage's own.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    square = nn.utils.get_total_norm(gradients).square()
    dist.all_reduce(square)
    nn.utils.clip_grads_with_norm_(parameters, limit, square.sqrt())


def build_deepspeed(rank: int, pp: int) -> Step:
    import deepspeed
    from deepspeed.pipe import PipelineModule

    from launcher.runtime.optimizer import build_optimizer

    deepspeed.ops.__compatible_ops__ = {}  # else it compiles an operator that training never calls
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    whole = Sequential(new_module(0, 1))
    layers = [whole.stage.embedding, *(BlockLayer(b) for b in whole.blocks()), NormLayer(whole)]
    module = PipelineModule(
        layers=layers, num_stages=pp, loss_fn=whole.loss, partition_method="type:BlockLayer",
        activation_checkpoint_interval=0,
    )  # fmt: skip
    run, layout = make_run(), make_layout(pp=pp, num_microbatches=NUM_MICROBATCHES)
    config = render_deepspeed_config(run, layout) | {"steps_per_print": 10**9}
    optimizer = build_optimizer(module.parameters(), run.optimizer)
    engine, *_ = deepspeed.initialize(model=module, config=config, optimizer=optimizer)
    microbatches = make_microbatches(NUM_MICROBATCHES, seed=0)
    pairs = [(m.tokens_BS, m.context.labels_BS) for m in microbatches]

    def step() -> float | None:
        loss = engine.train_batch(iter(pairs))
        return float(loss) if rank == pp - 1 else None

    return step


def new_module(index: int, count: int, has_queue: bool = False) -> Any:
    """A stage of the same decoder with the same initial weights, every time it is asked for."""
    from launcher.runtime.model.stage import build_stage

    layout = make_layout(pp=count, num_microbatches=NUM_MICROBATCHES)
    single = make_layout(pp=1, num_microbatches=NUM_MICROBATCHES)
    from dataclasses import replace

    groups = make_alone()
    layout = replace(layout, world_size=single.world_size)
    return build_stage(make_run(), layout, make_stage(index, count), groups, has_queue)


class Sequential(nn.Module):
    """A stage as torch's pipelining wants it: tensor in, tensor out, the loss apart."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage

    def blocks(self) -> list[nn.Module]:
        return list(self.stage.layers.values())

    def forward(self, x: Tensor) -> Tensor:
        if self.stage.is_first:
            x = self.stage.embedding(x)
        for block in self.blocks():
            x = block(x, None)
        return self.stage.final_norm(x) if self.stage.is_last else x

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return self.stage.head(hidden, labels)


class BlockLayer(nn.Module):
    """A block as DeepSpeed's PipelineModule wants it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


class NormLayer(nn.Module):
    """The final norm, which owns the head's weight so that it is trained, too."""

    def __init__(self, whole: Sequential) -> None:
        super().__init__()
        self.norm = whole.stage.final_norm
        self.head = whole.stage.head

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def whole_batch() -> tuple[Tensor, Tensor]:
    microbatches = make_microbatches(NUM_MICROBATCHES, seed=0)
    tokens = torch.cat([m.tokens_BS for m in microbatches])
    return tokens, torch.cat([m.context.labels_BS for m in microbatches])


def main() -> None:
    assert LAYERS % 4 == 0
    rounds = rounds_argument(str(__doc__), default=25)
    for pp in (2, 4):
        run_ranks(pp, compare, rounds)


if __name__ == "__main__":
    main()
