"""Attention over a sequence cut over cp, beside torch's experimental context parallelism.

    python benchmarks/ring_attention.py [--cp 4]

Forward and backward of causal attention in the zig-zag cut. torch's `context_parallel` itself does
not run on CPU: it tells so first. What it is made of does, with the attention kernel of the CPU in
the place of CUDA's: `_templated_ring_attention` and its backward, which pass keys on (all-to-all,
torch's ring) or gather them. Outputs and gradients are compared first. The plan's predicted time
stands beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import machine, report, run_ranks, time_in_turn
from decoder import make_groups, make_layout, make_run
from facts import measure_machine, on_hardware
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._context_parallel import _attention as torch_cp

from launcher.config.schema import Hardware, Run
from launcher.plan.collectives import PassTimes
from launcher.plan.context_traffic import cp_times
from launcher.plan.execution import runtime_job
from launcher.plan.operator_records import Work
from launcher.plan.operators import block_work
from launcher.plan.records import Layout
from launcher.plan.step_time import find_links
from launcher.plan.work_time import time_work
from launcher.runtime.groups import Axis
from launcher.runtime.parallel.attention_parts import Parts
from launcher.runtime.parallel.ring import gathered_attention, ring_attention
from launcher.runtime.parallel.sequence_cut import cut_sequence

BATCH, HEADS, WIDTH, LENGTH = 1, 8, 64, 2048
Step = Callable[[], tuple[Tensor, ...]]
"""Forward and backward: the output and the gradients of queries, keys and values."""


def compare(rank: int, rounds: int) -> None:
    cp = dist.get_world_size()
    layout = cp_layout(cp)
    axis = make_groups(layout).cp
    said = try_context_parallel()
    if rank == 0:
        print(f"torch context_parallel on CPU: {said}")
    generator = torch.Generator().manual_seed(rank)
    shape = (3, BATCH, HEADS, LENGTH // cp, WIDTH)
    inputs = [x.requires_grad_() for x in torch.randn(shape, generator=generator)]
    cut = cut_sequence("ring", axis, LENGTH, torch.device("cpu"))
    assert cut is not None
    parts = Parts(cut=cut, window=None, documents_BS=None)
    contestants = {
        "launch ring": make_step(inputs, lambda q, k, v: ring_attention(q, k, v, parts)),
        "launch all_gather": make_step(inputs, lambda q, k, v: gathered_attention(q, k, v, parts)),
        "torch ring (alltoall)": make_step(inputs, torch_attention(axis, "alltoall")),
        "torch all-gather": make_step(inputs, torch_attention(axis, "allgather")),
    }
    expected, *others = [step() for step in contestants.values()]
    for found in others:
        for mine, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    hardware = measure_machine()
    cpu: dict[str, list[float]] = {}
    seconds = time_in_turn(contestants, rounds, cpu=cpu)
    if rank == 0:
        title = f"cp={cp}, {LENGTH} tokens, {HEADS} heads of {WIDTH}, causal; {machine()}"
        predicted = {
            f"launch {mode}": predict_s(cp, mode, hardware) for mode in ("ring", "all_gather")
        }
        for ours in predicted:
            report(title, seconds, ours=ours, predicted=predicted, cpu=cpu)


def try_context_parallel() -> str:
    """What torch says; every rank tries."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.randn(BATCH, HEADS, 8 * dist.get_world_size(), WIDTH)
    try:
        with context_parallel(mesh, buffers=[whole], buffer_seq_dims=[2]):
            q, k, v = (whole.clone().requires_grad_() for _ in range(3))
            F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "runs"


def make_step(inputs: list[Tensor], attention: Callable[..., Tensor]) -> Step:
    grad = torch.ones_like(inputs[0])

    def step() -> tuple[Tensor, ...]:
        out = attention(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, grad)

    return step


def torch_attention(axis: Axis, rotate: str) -> Callable[..., Tensor]:
    """torch's ring with the CPU's kernel."""
    method = torch_cp._RotateMethod.ALL_TO_ALL
    if rotate == "allgather":
        method = torch_cp._RotateMethod.ALL_GATHER

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _TorchRing.apply(q, k, v, axis.group, method)

    return attention


class _TorchRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Any, method: Any) -> Tensor:
        torch_cp._cp_options.rotate_method = method
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = torch_cp._templated_ring_attention(
            group, 2, kernel, q, k, v, is_causal=True, dropout_p=0.0
        )
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.group, ctx.method = group, method
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        torch_cp._cp_options.rotate_method = ctx.method
        q, k, v, out, log_sum = ctx.saved_tensors
        found = torch_cp._templated_ring_attention_backward(
            ctx.group, 2, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
            grad, "grad_out", q, k, v, out, log_sum, is_causal=True, dropout_p=0.0,
        )  # fmt: skip
        return *found[:3], None, None


def predict_s(cp: int, mode: str, hardware: Hardware) -> float:
    """The plan's time of one attention core, forward and backward, on this machine."""
    run = on_hardware(attention_run(mode), hardware)
    job = runtime_job(run, cp_layout(cp))
    times = time_work(job, Work(attention=block_work(job).attention))
    compute = PassTimes(forward_s=times.forward_s, backward_s=times.input_gradient_s)
    waits = cp_times(job, find_links(job).cp, compute, "none")
    return compute.forward_s + compute.backward_s + waits.forward_s + waits.backward_s


def attention_run(mode: str) -> Run:
    """A model with heads of that number and width."""
    run = make_run()
    model = run.model.model_copy(
        update={
            "num_heads": HEADS, "hidden_size": HEADS * WIDTH, "num_kv_heads": HEADS,
            "max_sequence_length": LENGTH,
        }
    )  # fmt: skip
    parallelism = run.parallelism.model_copy(update={"cp_mode": mode})
    return run.model_copy(update={"model": model, "parallelism": parallelism})


def cp_layout(cp: int) -> Layout:
    return replace(
        make_layout(num_microbatches=1), world_size=cp, gpus_per_node=cp, cp=cp,
        micro_batch_size=BATCH, global_batch_size=BATCH, sequence_length=LENGTH,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--rounds", type=int, default=25, help="counted rounds")
    parser.add_argument("--cp", type=int, action="append", help="ranks (default: 2 and 4)")
    options = parser.parse_args()
    for cp in options.cp or (2, 4):
        run_ranks(cp, compare, options.rounds)


if __name__ == "__main__":
    main()
