"""What follows attention in a block: an MLP, or a router with experts.

F = width of this rank's MLP.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.config.schema import Model
from launcher.plan.execution import Execution, Job
from launcher.plan.kernels import Gemm
from launcher.plan.operator_records import (
    Matmul,
    Size,
    Traffic,
    Work,
    join_work,
    make_matmul,
    moved_in,
    routed_tokens,
)

GATE = {"eager": (5, 9), "fused": (3, 5), "compiled": (3, 5)}
"""Of F: silu and product apart, or together."""


def mlp_work(job: Job, size: Size, ffn: int) -> Work:
    """Two products, or three with a gate, and the activation."""
    model, hidden, tokens = job.model, job.model.hidden_size, size.tokens
    moved = moved_in(job, tokens)
    return Work(
        matmuls=_mlp_matmuls(job, tokens, hidden, ffn),
        traffic=(_activation(model, job.execution, moved, ffn),),
    )


def _mlp_matmuls(job: Job, tokens: int, hidden: int, ffn: int) -> tuple[Matmul, ...]:
    up: tuple[Matmul, ...] = (make_matmul(job, tokens, hidden, ffn),)
    if job.model.is_gated and job.execution.fusion == "fused":  # Megatron: one product for both
        up = (make_matmul(job, tokens, hidden, 2 * ffn),)
    elif job.model.is_gated:
        up = (*up, make_matmul(job, tokens, hidden, ffn, saved=False))
    return (*up, make_matmul(job, tokens, ffn, hidden, saved=job.model.is_gated))


def _activation(
    model: Model, execution: Execution, moved: Callable[..., Traffic], ffn: int
) -> Traffic:
    if model.is_gated:
        forward, backward = GATE[execution.fusion]
        kernels = 2 if execution.fusion == "eager" else 1
        return moved(forward * ffn, backward * ffn, kernels, kernels)
    return moved(2 * ffn, 3 * ffn, 1, 1)


def experts_work(job: Job, size: Size) -> Work:
    """Router, exchange of tokens, experts, exchange back; shared experts beside."""
    model, layout = job.model, job.layout
    experts = model.experts
    assert experts is not None
    hidden, tokens = model.hidden_size, size.norm_tokens
    local = max(1, experts.num_experts // layout.ep)
    routed = routed_tokens(job, size)  # of all ranks' tokens as many come as go
    ffn = experts.ffn_hidden_size // (layout.tp if layout.ep == 1 else 1)
    each = -(-routed // local)
    element = job.execution.element_bytes
    grouped = tuple(
        Matmul(
            forward=Gemm(
                m=each, n=gemm.n, k=gemm.k, batch=local,
                element_bytes=gemm.element_bytes, output_bytes=gemm.output_bytes,
            )
        )
        for gemm in (product.forward for product in _mlp_matmuls(job, each, hidden, ffn))
    )  # fmt: skip
    moved, moved_routed = moved_in(job, tokens), moved_in(job, routed)
    traffic = (
        moved(2 * hidden + 8 * experts.num_experts, 2 * hidden + 8 * experts.num_experts, 12, 8),
        # Sorted by expert before and after the exchange, weighted and summed on return.
        moved_routed(8 * hidden, 8 * hidden, 6, 6),
        _activation(model, job.execution, moved_routed, ffn),
    )
    shared = (
        mlp_work(job, size, experts.num_shared * experts.ffn_hidden_size // layout.tp)
        if experts.num_shared
        else Work()
    )
    router = make_matmul(job, tokens, hidden, experts.num_experts)
    return join_work(
        Work(
            matmuls=(router,), grouped=grouped, traffic=traffic,
            all_to_all_bytes=float(routed * hidden * element) if layout.ep > 1 else 0.0,
        ),
        shared,
    )  # fmt: skip
