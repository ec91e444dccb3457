"""Trains a layout on processes and the same run in one, and tells how far they are apart."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from launcher.config.schema import Run
from launcher.plan.execution import runtime_job
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Communication, Layout
from launcher.plan.schedule import build_schedule
from launcher.plan.schedule_records import Schedule
from launcher.plan.step_time import find_links
from launcher.plan.traffic import list_communication
from launcher.render.deepspeed import render_deepspeed_config
from launcher.runtime.build import has_queue
from launcher.runtime.engine import Engine, build_engine
from launcher.runtime.groups import Groups, build_groups
from launcher.runtime.model import ForwardContext, build_stage
from launcher.runtime.optimizer import learning_rate
from launcher.runtime.parallel.cross_entropy import IGNORED
from launcher.runtime.parallel.shard import local_shards
from launcher.runtime.pipeline.execute import (
    Microbatch,
    average_loss,
    run_forward,
    run_schedule,
)
from launcher.runtime.pipeline.p2p import Channels, boundary_shape, build_channels
from launcher.runtime.reference import Reference, is_arbitrary, train_reference
from tests.factory import TINY, TINY_GPT, make_run
from tests.runtime.sent import count_sent
from tests.runtime.stages import cut_of, make_layout, make_stage

STEPS = 4
MODELS: dict[str, dict[str, Any]] = {
    "untied": TINY | {"vocab_size": 97},
    "tied": TINY_GPT | {"vocab_size": 97},
    "one_kv_head": TINY | {"vocab_size": 97, "num_kv_heads": 1, "bias": True},
    "small": TINY | {"vocab_size": 97, "num_layers": 2},
    "deep": TINY_GPT | {"vocab_size": 97, "num_layers": 9},
    "tied_llama": TINY | {"vocab_size": 97, "tie_embeddings": True},
    "dropout": TINY_GPT | {"vocab_size": 97, "dropout": 0.2},
    "window": TINY | {"vocab_size": 97, "sliding_window": 5},
    "narrow_window": TINY | {"vocab_size": 97, "sliding_window": 3},
}
OVERRIDES: dict[str, Any] = {
    "train.steps": STEPS,
    # Far below the norm at the start, so that clipping matters in every step.
    "optimizer": {
        "name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "clip_grad_norm": 0.2,
        # Large, or Adam would blow up the rounding noise of tiny gradients into full steps.
        "eps": 1e-4,
        "schedule": "cosine", "warmup_steps": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One layout to be compared with one process; hashable, so that it can key results."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 0
    schedule: str = "1f1b"
    num_microbatches: int = 3
    model: str = "tied"
    precision: str = "fp32"
    vpp: int = 1
    recompute: str = "none"
    sp: bool = False
    overlap: bool = False
    """Of tp's collectives."""
    p2p: bool = True
    """Overlap of transfers between stages."""
    micro: int = 1
    """Samples per microbatch."""
    engine: str = "deepspeed"
    cp: int = 1
    cp_mode: str = "ring"
    order: tuple[str, ...] = ("tp", "cp", "dp", "pp")
    packed: bool = False
    """Documents of a sample are kept apart."""

    def __str__(self) -> str:
        axes = "".join(f"{axis}{getattr(self, axis)}" for axis in ("tp", "pp", "dp"))
        axes += f"cp{self.cp}{self.cp_mode}" if self.cp > 1 else ""
        rest = f"zero{self.zero}-{self.schedule}-m{self.num_microbatches}-{self.model}"
        rest += f"-vpp{self.vpp}" if self.vpp > 1 else ""
        rest += f"-{self.recompute}" if self.recompute != "none" else ""
        rest += "-sp" * self.sp + "-overlap" * self.overlap
        rest += "" if self.p2p else "-blocking"
        rest += f"-micro{self.micro}" if self.micro > 1 else ""
        rest += f"-{self.engine}" if self.engine != "deepspeed" else ""
        rest += "-packed" * self.packed
        rest += "" if self.order == Case.order else "-" + "".join(self.order)
        return f"{axes}-{rest}-{self.precision}"

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def layout(self) -> Layout:
        return make_layout(
            tp=self.tp, cp=self.cp, pp=self.pp, dp=self.dp, zero_stage=self.zero,
            schedule=self.schedule, vpp=self.vpp, recompute=self.recompute, engine=self.engine,
            num_microbatches=self.num_microbatches, micro_batch_size=self.micro,
            sequence_parallel=self.sp, overlap_tp=self.overlap, overlap_p2p=self.p2p,
            order=self.order,
        )  # fmt: skip

    def run(self, **overrides: Any) -> Run:
        precision = {"name": self.precision, "compute": self.precision}
        keys = {
            "parallelism.cp_mode": self.cp_mode,
            "data.packing": "documents" if self.packed else "concatenate",
        }
        return make_run(
            model=MODELS[self.model], precision=precision, **keys, **OVERRIDES, **overrides
        )


@dataclass
class Gap:
    """Relative differences of a layout from one process."""

    loss: float = 0.0
    grad_norm: float = 0.0
    validation: float = 0.0
    gradients: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    sent_over_cp: dict[str, int] = field(default_factory=dict)
    """Bytes of this rank in one step, by operation."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What one rank trains with."""

    case: Case
    run: Run
    layout: Layout
    groups: Groups
    engine: Engine
    channels: Channels

    def accumulate(self, step: int) -> torch.Tensor:
        """All microbatches of a step, forward and backward; their mean loss."""
        with self.engine.accumulate():
            loss = run_schedule(*self._work(step))
        return average_loss(loss, self.groups)

    def validate(self, step: int) -> torch.Tensor:
        """The mean loss of a step's microbatches."""
        self.engine.module.eval()
        loss = run_forward(*self._work(step))
        self.engine.module.train()
        return average_loss(loss, self.groups)

    def _work(self, step: int) -> Any:
        layout, stage = self.layout, self.groups.pp.index
        schedule = make_schedule(layout)
        first = self.groups.dp.index * layout.num_microbatches
        microbatches = make_microbatches(self.run, layout, step, self.case.packed)
        mine = microbatches[first : first + layout.num_microbatches]
        return schedule, self.engine, self.channels, stage, mine

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.run.optimizer, step, self.run.train.steps)


def make_schedule(layout: Layout) -> Schedule:
    return build_schedule(layout.schedule, layout.pp, layout.num_microbatches, layout.vpp)


def build_worker(case: Case, **overrides: Any) -> Worker:
    run, layout = case.run(**overrides), case.layout()
    tied = run.model.tie_embeddings
    groups = build_groups(
        layout, build_mesh(layout), torch.device("cpu"), tied, kv_heads=run.model.kv_heads
    )
    schedule = make_schedule(layout)
    chain = schedule.chain
    stage = make_stage(run.model.num_layers, groups.pp.index, layout.pp, chain)
    module = build_stage(run, layout, stage, groups, has_queue(run, layout, schedule))
    shape = boundary_shape(layout, run.model)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    channels = build_channels(groups, shape, dtype, chain, layout.overlap_p2p)
    engine = build_engine(module, run, layout, groups, render_deepspeed_config(run, layout))
    return Worker(
        case=case, run=run, layout=layout, groups=groups, engine=engine, channels=channels
    )


def plan_traffic(case: Case) -> tuple[Communication, ...]:
    """What the plan of a case says that its busiest rank sends."""
    run, layout = case.run(), case.layout()
    chain = make_schedule(layout).chain
    num_layers = run.model.num_layers
    stages = [make_stage(num_layers, stage, layout.pp, chain) for stage in range(layout.pp)]
    job = runtime_job(run, layout)
    return list_communication(job, stages, find_links(job))


def make_microbatches(
    run: Run, layout: Layout, step: int, packed: bool = False
) -> list[Microbatch]:
    """All microbatches of a step, of all replicas; the same in any layout."""
    size, made = layout.micro_batch_size, []
    for first in range(0, layout.global_batch_size, size):
        generator = torch.Generator().manual_seed(1000 * step + first)
        shape = (size, layout.sequence_length + 1)
        window = torch.randint(run.model.vocab_size, shape, generator=generator)
        labels = window[:, 1:]
        context = ForwardContext(labels_BS=labels, step=step, first_sample=first)
        if packed:
            context = pack(context, labels, generator)
        made.append(Microbatch(tokens_BS=window[:, :-1], context=context))
    return made


def pack(
    context: ForwardContext, labels: torch.Tensor, generator: torch.Generator
) -> ForwardContext:
    """Documents that begin anywhere; no label crosses into the next, and microbatches differ in
    how many they have.
    """
    begins = torch.rand(labels.shape[0], labels.shape[1] + 1, generator=generator) < 0.2
    documents = begins.cumsum(dim=1)
    labels = labels.where(documents[:, 1:] == documents[:, :-1], IGNORED)
    return replace(
        context, labels_BS=labels, documents_BS=documents[:, :-1], num_labels=0.8 * labels.numel()
    )


@cache
def reference(case: Case) -> Reference:
    run, layout = case.run(), case.layout()
    return train_reference(
        run, layout, [make_microbatches(run, layout, s, case.packed) for s in range(STEPS)]
    )


def measure(case: Case, **overrides: Any) -> Gap:
    """The gap of a case, seen from this rank."""
    with contextlib.redirect_stdout(io.StringIO()):
        worker = build_worker(case, **overrides)
    oracle = _shared_reference(case)
    gap = Gap()
    for step in range(STEPS):
        if step == 1 and not worker.run.model.dropout:  # which validation is without
            gap.validation = abs(worker.validate(step).item() / oracle.losses[step] - 1.0)
        with count_sent(worker.groups.cp) as sent:
            loss = worker.accumulate(step).item()
        if step == 0:
            gap.sent_over_cp = sent
            gap.gradients = _compare(worker, worker.engine.gradients(), oracle.gradients, True)
        norm = worker.engine.step(worker.learning_rate(step))
        gap.loss = max(gap.loss, abs(loss / oracle.losses[step] - 1.0))
        gap.grad_norm = max(gap.grad_norm, abs(norm / oracle.grad_norms[step] - 1.0))
    gap.weights = _compare(worker, worker.engine.weights(), oracle.weights, False)
    return gap


def _shared_reference(case: Case) -> Reference:
    """Computed on rank 0 alone: layouts that see the same batches have the same reference."""
    key = Case(
        dp=case.dp, num_microbatches=case.num_microbatches, model=case.model,
        precision=case.precision, micro=case.micro, packed=case.packed,
    )  # fmt: skip
    box = [reference(key) if case.world_size == 1 or dist.get_rank() == 0 else None]
    if case.world_size > 1:
        dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def _compare(
    worker: Worker, mine: dict[str, torch.Tensor], full: dict[str, torch.Tensor], is_gradient: bool
) -> dict[str, float]:
    """Norm of the difference over the norm of the reference's slice, by logical name."""
    shards, found = local_shards(worker.engine.module), {}
    total = torch.stack([tensor.float().norm() for tensor in full.values()]).norm().item()
    for name, shard in shards.items():
        expected = cut_of(full[shard.name].float(), shard)
        got = mine[name]
        if shard.dim is not None:
            got, padding = got.tensor_split([shard.stop - shard.start], dim=shard.dim)
            assert not padding.any(), f"{name}: padding is not zero"
        scale = expected.norm().item()
        if is_arbitrary(worker.run.model, name):
            if not is_gradient:
                continue
            scale = total
        found[name] = (got - expected).norm().item() / max(scale, 1e-30)
    return found
