"""Attention as kernels: projections, rotation, and the core, plain or with latent keys and values.

Q and K = width of this rank's queries and keys.
"""

from __future__ import annotations

from launcher.config.schema import Model
from launcher.plan.encoder import source_tokens
from launcher.plan.execution import Job
from launcher.plan.operator_records import (
    NORM,
    Attention,
    Matmul,
    Size,
    Work,
    make_matmul,
    moved_in,
)

ROPE = {"eager": (10, 10), "fused": (2, 2), "compiled": (2, 2)}
"""Of Q + K: eager rotation upcasts, multiplies complex numbers, downcasts."""


def plain_attention(job: Job, size: Size) -> Work:
    """Projections, rotation and core; keys may have fewer heads than queries."""
    model = job.model
    hidden, tokens = model.hidden_size, size.tokens
    moved = moved_in(job, tokens)
    if job.execution.fusion == "eager" and job.execution.attention != "matrix":
        projections: tuple[Matmul, ...] = (
            make_matmul(job, tokens, hidden, size.queries),
            make_matmul(job, tokens, hidden, size.keys, saved=False),
            make_matmul(job, tokens, hidden, size.keys),
        )
    else:  # one product for all three
        projections = (make_matmul(job, tokens, hidden, size.queries + 2 * size.keys),)
    traffic = []
    if model.position == "rope":
        forward, backward = ROPE[job.execution.fusion]
        width = size.queries + size.keys
        traffic.append(moved(forward * width, backward * width, 2, 2))
    if job.execution.fusion == "fused":  # q, k, v leave one matrix and gradients go back into it
        width = size.queries + 2 * size.keys
        traffic.append(moved(2 * width, 2 * width, 1, 1))
    if size.read_keys > size.keys:
        width = 2 * (size.keys + size.read_keys)
        traffic.append(moved(width, width, 2, 2))
    core = Attention(
        batch=size.batch,
        queries=size.sequence // job.layout.cp,
        keys=size.sequence,
        heads=size.heads,
        score_dim=model.head_size,
        value_dim=model.head_size,
        seen=size.sequence if job.execution.sees_all else keys_seen(model, size.sequence),
        dropout=job.execution.dropout_masks,
    )
    output = make_matmul(job, tokens, size.queries, hidden, saved=False)
    return Work(matmuls=(*projections, output), traffic=tuple(traffic), attention=(core,))


def cross_attention(job: Job, size: Size) -> Work:
    """The decoder's queries over keys and values of the encoder's output, which see all of it."""
    hidden, source = job.model.hidden_size, source_tokens(job)
    core = Attention(
        batch=size.batch, queries=size.sequence, keys=job.layout.sequence_length, heads=size.heads,
        score_dim=job.model.head_size, value_dim=job.model.head_size,
        seen=job.layout.sequence_length, dropout=job.execution.dropout_masks,
    )  # fmt: skip
    width = 2 * (size.queries + 2 * size.keys)
    return Work(
        matmuls=(
            make_matmul(job, size.tokens, hidden, size.queries),
            make_matmul(job, source, hidden, 2 * size.keys),
            make_matmul(job, size.tokens, size.queries, hidden, saved=False),
        ),
        traffic=(moved_in(job, size.tokens)(width, width, 1, 1),),
        attention=(core,),
    )


def keys_seen(model: Model, length: int) -> float:
    """Causal: half of all, less within a window."""
    window = min(model.sliding_window or length, length)
    return window - window * window / (2 * length)


def latent_attention(job: Job, size: Size) -> Work:
    """DeepSeek-V2 (arXiv:2405.04434), sec. 2.1: q and kv come down to a rank and up again."""
    model = job.model
    latent = model.latent
    assert latent is not None
    hidden, tokens, heads = model.hidden_size, size.tokens, size.heads
    score = latent.nope_head_dim + latent.rope_head_dim
    queries, values = heads * score, heads * latent.value_head_dim
    moved, matmuls = moved_in(job, tokens), []
    if latent.q_rank:
        matmuls.append(make_matmul(job, tokens, hidden, latent.q_rank))
    matmuls += [
        make_matmul(job, tokens, latent.q_rank or hidden, queries, saved=False),
        make_matmul(job, tokens, hidden, latent.kv_rank + latent.rope_head_dim),
        make_matmul(
            job, tokens, latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim)
        ),
        make_matmul(job, tokens, values, hidden, saved=False),
    ]
    ranks = (latent.q_rank or 0) + latent.kv_rank
    forward, backward = NORM["fused"]
    # Queries and keys are put together from their parts: split, rotated, concatenated.
    traffic = (
        moved(forward * ranks, backward * ranks, 2, 2),
        moved(8 * queries, 8 * queries, 6, 6),
        moved(2 * values, 2 * values, 2, 2),
    )
    core = Attention(
        batch=size.batch, queries=size.sequence // job.layout.cp, keys=size.sequence, heads=heads,
        score_dim=score, value_dim=latent.value_head_dim, seen=keys_seen(model, size.sequence),
    )  # fmt: skip
    return Work(matmuls=tuple(matmuls), traffic=traffic, attention=(core,))
