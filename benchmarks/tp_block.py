"""Tensor- and sequence-parallel blocks beside torch.distributed.tensor's `parallelize_module`.

    python benchmarks/tp_block.py

tp=2, forward and backward of the same decoder blocks with the same weights and input; torch cuts
them by the plan of its own Llama example (norms sequence-parallel, column- and row-wise linears).
Outputs and input gradients are compared first. The plan's predicted time stands beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import machine, report, rounds_argument, run_ranks, time_in_turn
from decoder import (
    HIDDEN,
    LAYERS,
    MICRO,
    SEQUENCE,
    make_alone,
    make_groups,
    make_layout,
    make_run,
    make_stage,
)
from facts import measure_machine, on_hardware
from torch import Tensor, nn

from launcher.config.schema import Hardware
from launcher.plan.execution import runtime_job
from launcher.plan.records import Layout
from launcher.plan.stage_time import estimate_parts, part_cost
from launcher.plan.step_time import find_links
from launcher.runtime.gradients import partial_over_tp, sum_partial_gradients
from launcher.runtime.model.stage import build_stage

TP = 2


def compare(rank: int, rounds: int) -> None:
    whole = torch.randn(MICRO, SEQUENCE, HIDDEN, generator=torch.Generator().manual_seed(0))
    piece = whole.chunk(TP, dim=1)[rank].contiguous()
    contestants = {
        "launch": build_ours(piece),
        "launch, overlapped": build_ours(piece, overlap_tp=True),
        "torch parallelize_module": build_torch(piece),
    }
    results = [step() for step in contestants.values()]
    for output, gradient in results[1:]:
        torch.testing.assert_close(output, results[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-4)
    hardware = measure_machine()
    cpu: dict[str, list[float]] = {}
    seconds = time_in_turn(contestants, rounds, cpu=cpu)
    if rank == 0:
        title = f"tp={TP}, sequence parallel, {LAYERS} blocks, forward and backward; {machine()}"
        predicted = {
            "launch": predict_s(False, hardware),
            "launch, overlapped": predict_s(True, hardware),
        }
        report(title, seconds, ours="launch", predicted=predicted, cpu=cpu)


Step = Callable[[], tuple[Tensor, Tensor]]
"""Forward and backward: this rank's piece of the output, and of the input's gradient."""


def make_tp_layout(overlap_tp: bool) -> Layout:
    return replace(
        make_layout(num_microbatches=1), world_size=TP, gpus_per_node=TP, tp=TP,
        sequence_parallel=True, overlap_tp=overlap_tp,
    )  # fmt: skip


def build_ours(piece: Tensor, overlap_tp: bool = False) -> Step:
    layout = make_tp_layout(overlap_tp)
    groups = make_groups(layout)
    stage = replace(make_stage(0, 1), is_first=False, is_last=False)
    module = build_stage(make_run(), layout, stage, groups)

    def sum_partial() -> None:
        gradients = [p.grad for p in partial_over_tp(module.parameters()) if p.grad is not None]
        sum_partial_gradients(gradients, groups.tp)

    return make_step(module, list(module.layers.values()), piece, sum_partial)


def build_torch(piece: Tensor) -> Step:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (TP,))
    module = build_stage(
        make_run(), make_layout(num_microbatches=1),
        replace(make_stage(0, 1), is_first=False, is_last=False), make_alone(),
    )  # fmt: skip
    blocks: list[Any] = list(module.layers.values())
    for block in blocks:
        attention = {f"attention.{name}_proj": ColwiseParallel() for name in "qkv"}
        parallelize_module(block, mesh, {
            "attention_norm": SequenceParallel(use_local_output=False),
            "attention": PrepareModuleInput(
                input_layouts=(Shard(1), None, None),
                desired_input_layouts=(Replicate(), None, None),
            ),
            **attention,
            "attention.out_proj": RowwiseParallel(output_layouts=Shard(1), use_local_output=True),
            "mlp_norm": SequenceParallel(use_local_output=False),
            "mlp": PrepareModuleInput(
                input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)
            ),
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.up_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1), use_local_output=True),
        })  # fmt: skip
    norms = [b.attention_norm.weight for b in blocks] + [b.mlp_norm.weight for b in blocks]

    def sum_partial() -> None:
        for weight in norms:  # DTensor leaves their sum to whoever asks for the value
            weight.grad = weight.grad.redistribute(mesh, [Replicate()])

    return make_step(module, blocks, piece, sum_partial)


def make_step(
    module: nn.Module, blocks: list[Any], piece: Tensor, sum_partial: Callable[[], None]
) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        module.zero_grad(set_to_none=True)
        first = x = piece.clone().requires_grad_()
        for block in blocks:
            x = block(x, None)
        x.square().mean().backward()
        sum_partial()
        assert first.grad is not None
        return x.detach(), first.grad

    return step


def main() -> None:
    run_ranks(TP, compare, rounds_argument(str(__doc__), default=25))


def predict_s(overlap_tp: bool, hardware: Hardware) -> float:
    """The plan's time of the same blocks, forward and backward, on this machine."""
    layout = make_tp_layout(overlap_tp)
    stage = replace(make_stage(0, 1), is_first=False, is_last=False)
    job = runtime_job(on_hardware(make_run(), hardware), layout)
    links = find_links(job)
    cost = part_cost(job, stage, estimate_parts(job, links), links)
    return cost.forward_s + cost.input_s + cost.weight_s


if __name__ == "__main__":
    main()
