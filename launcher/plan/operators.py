"""What one microbatch makes a rank compute: the kernels of a block and of the model's ends."""

from __future__ import annotations

from launcher.plan.execution import Job
from launcher.plan.kernels import Gemm
from launcher.plan.operator_records import (
    NORM,
    Matmul,
    Size,
    Traffic,
    Work,
    join_work,
    moved_in,
    size_of,
)
from launcher.plan.operators_attention import cross_attention, latent_attention, plain_attention
from launcher.plan.operators_mlp import experts_work, mlp_work


def block_work(job: Job, layer: int | None = None) -> Work:
    """One block; of a mixture of experts the block with experts, unless `layer` keeps an MLP."""
    size, model = size_of(job), job.model
    is_moe = model.experts is not None and (layer is None or not model.experts.is_plain(layer))
    attention = latent_attention(job, size) if model.latent else plain_attention(job, size)
    mlp = experts_work(job, size) if is_moe else mlp_work(job, size, size.ffn)
    norms = _norms(job, size)
    if model.encoder is None:
        return join_work(norms, attention, mlp)
    more = Work(traffic=norms.traffic[1:3])  # one norm and one sum
    return join_work(norms, more, attention, cross_attention(job, size), mlp)


def _norms(job: Job, size: Size) -> Work:
    """Two norms, two residual sums with what dropout adds."""
    model, execution = job.model, job.execution
    moved, hidden = moved_in(job, size.norm_tokens), model.hidden_size
    fusion = execution.fusion
    if fusion == "eager" and (model.norm == "layernorm" or execution.fused_norm):
        fusion = "fused"
    forward, backward = NORM[fusion]
    kernels = 6 if fusion == "eager" else 1
    norm = moved(forward * hidden, backward * hidden, kernels, kernels)
    masks = 0.5 * hidden if execution.dropout_masks else 0
    # With a bias or dropout the sum has a backward of its own; without, gradients only add up.
    residual = moved(3 * hidden + masks, 3 * hidden + 2 * masks, 1, 1)
    if execution.dropout_masks and fusion == "eager":
        residual = moved(5 * hidden + masks, 5 * hidden + masks, 2, 2)
    return Work(traffic=(norm, norm, residual, residual))


def embedding_work(job: Job) -> Work:
    """Looking up tokens; backward adds up float32 rows."""
    size = size_of(job)
    moved = moved_in(job, size.tokens)
    hidden = job.model.hidden_size
    return Work(traffic=(moved(2 * hidden, 6 * hidden, 1, 2),))


LOSS_BYTES = (26, 18)
"""Bytes per logit of the loss forward and backward: torch's own upcasts (2 + 4), takes the
maximum (4), the exponent's sum (4 + 4), and writes log-probabilities (8); backward reads and
writes float32 and downcasts. Programs that compile blocks leave the loss to these kernels."""

FUSED_LOSS_BYTES = (6, 4)
"""One kernel reads twice and writes the gradient."""


def head_work(job: Job) -> Work:
    """Last norm, logits, loss."""
    size, model = size_of(job), job.model
    forward, backward = FUSED_LOSS_BYTES if job.execution.fused_loss else LOSS_BYTES
    rows = size.vocabulary
    element = job.execution.element_bytes
    gemm = Gemm(
        m=size.tokens, n=rows, k=model.hidden_size, element_bytes=element, output_bytes=element
    )
    moved = moved_in(job, size.norm_tokens)
    return Work(
        matmuls=(Matmul(forward=gemm, is_quantised=False),),
        traffic=(
            moved(2 * model.hidden_size, 3 * model.hidden_size, 1, 1),
            Traffic(
                forward_bytes=float(forward) * size.tokens * rows,
                backward_bytes=float(backward) * size.tokens * rows,
                forward_kernels=4, backward_kernels=2,
            ),
        ),
    )  # fmt: skip
