"""What one microbatch makes a rank compute: matrix products, attention and memory traffic.

Letters: T = tokens of a microbatch on this rank, H = hidden size, Q and K = width of this rank's
queries and keys, F = of its MLP. Traffic is counted in elements per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from launcher.config.schema import Model
from launcher.plan.execution import Execution, Job
from launcher.plan.kernels import Gemm


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """A product with a weight: backward is one product for the input and one for the weight."""

    forward: Gemm
    is_quantised: bool = True
    """Runs in the blocks' matrix type; the head does not."""
    saved: bool = True
    """Kept, where recomputation is by operator; every second product is not."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Kernels that move memory only."""

    forward_bytes: float
    backward_bytes: float
    forward_kernels: int = 1
    backward_kernels: int = 1


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Scores, softmax and weighted sum of one microbatch."""

    batch: int
    queries: int
    """Tokens that ask."""
    keys: int
    """Tokens of the whole sequence."""
    heads: int
    score_dim: int
    value_dim: int
    seen: float
    """Keys that one query sees on average."""
    dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """The kernels of one block (or of one end of the model)."""

    matmuls: tuple[Matmul, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    attention: tuple[Attention, ...] = ()
    all_to_all_bytes: float = 0.0
    """What each of two exchanges of tokens between experts sends per pass."""
    grouped: tuple[Matmul, ...] = field(default=())
    """Products of the experts, one kernel for all of them."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and tokens on one rank."""

    batch: int
    tokens: int
    """Per microbatch on this rank: the sequence is cut over cp."""
    sequence: int
    """Whole."""
    norm_tokens: int
    """Where norms and residuals work: cut over tp with sequence parallelism."""
    queries: int
    keys: int
    heads: int
    ffn: int
    vocabulary: int


def size_of(job: Job) -> Size:
    """Sizes on one rank of this layout."""
    model, layout = job.model, job.layout
    tp = layout.tp
    tokens = layout.micro_batch_size * layout.sequence_length // layout.cp
    is_split = job.execution.sequence_parallel
    return Size(
        batch=layout.micro_batch_size,
        tokens=tokens,
        sequence=layout.sequence_length,
        norm_tokens=-(-tokens // tp) if is_split else tokens,
        queries=model.num_heads // tp * model.head_size,
        keys=max(1, model.kv_heads // tp) * model.head_size,
        heads=model.num_heads // tp,
        ffn=-(-model.ffn_hidden_size // tp),
        vocabulary=-(-model.vocab_size // tp),
    )


NORM = {"eager": (18, 24), "fused": (2, 3), "compiled": (2, 3)}
"""Elements of H read and written by a norm forward and backward. Eager RMSNorm is a chain of
float32 kernels: upcast, square, mean, root, two products, downcast; LayerNorm is one kernel."""

ROPE = {"eager": (10, 10), "fused": (2, 2), "compiled": (2, 2)}
"""Of Q + K: eager rotation upcasts, multiplies complex numbers, downcasts."""

GATE = {"eager": (5, 9), "fused": (3, 5), "compiled": (3, 5)}
"""Of F: silu and product apart, or together."""


def block_work(job: Job, layer: int | None = None) -> Work:
    """One block; of a mixture of experts the block with experts, unless `layer` keeps an MLP."""
    size, model = size_of(job), job.model
    is_moe = model.experts is not None and (
        layer is None or layer >= model.experts.num_dense_layers
    )
    attention = _latent_attention(job, size) if model.latent else _plain_attention(job, size)
    mlp = _experts(job, size) if is_moe else _mlp(job, size, size.ffn)
    norms = _norms(job, size)
    return _join(norms, attention, mlp)


def _join(*parts: Work) -> Work:
    return Work(
        matmuls=sum((part.matmuls for part in parts), ()),
        traffic=sum((part.traffic for part in parts), ()),
        attention=sum((part.attention for part in parts), ()),
        grouped=sum((part.grouped for part in parts), ()),
        all_to_all_bytes=sum(part.all_to_all_bytes for part in parts),
    )


def _moved(job: Job, tokens: int) -> Callable[[float, float, int, int], Traffic]:
    size = job.execution.element_bytes

    def traffic(forward: float, backward: float, kernels: int = 1, again: int = 1) -> Traffic:
        return Traffic(
            forward_bytes=forward * tokens * size,
            backward_bytes=backward * tokens * size,
            forward_kernels=kernels,
            backward_kernels=again,
        )

    return traffic


def _norms(job: Job, size: Size) -> Work:
    """Two norms, two residual sums with what dropout adds."""
    model, execution = job.model, job.execution
    moved, hidden = _moved(job, size.norm_tokens), model.hidden_size
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


def _matmul(job: Job, tokens: int, inputs: int, outputs: int, *, saved: bool = True) -> Matmul:
    element = job.execution.element_bytes
    operand = 1 if job.execution.matmul == "fp8" else element
    gemm = Gemm(m=tokens, n=outputs, k=inputs, element_bytes=operand, output_bytes=element)
    return Matmul(forward=gemm, saved=saved)


def _plain_attention(job: Job, size: Size) -> Work:
    model = job.model
    hidden, tokens = model.hidden_size, size.tokens
    moved = _moved(job, tokens)
    if job.execution.fusion == "eager" and job.execution.attention != "matrix":
        projections: tuple[Matmul, ...] = (
            _matmul(job, tokens, hidden, size.queries),
            _matmul(job, tokens, hidden, size.keys, saved=False),
            _matmul(job, tokens, hidden, size.keys),
        )
    else:  # one product for all three
        projections = (_matmul(job, tokens, hidden, size.queries + 2 * size.keys),)
    traffic = []
    if model.position == "rope":
        forward, backward = ROPE[job.execution.fusion]
        width = size.queries + size.keys
        traffic.append(moved(forward * width, backward * width, 2, 2))
    if job.execution.fusion == "fused":  # q, k, v leave one matrix and gradients go back into it
        width = size.queries + 2 * size.keys
        traffic.append(moved(2 * width, 2 * width, 1, 1))
    core = Attention(
        batch=size.batch,
        queries=size.sequence // job.layout.cp,
        keys=size.sequence,
        heads=size.heads,
        score_dim=model.head_size,
        value_dim=model.head_size,
        seen=_keys_seen(model, size.sequence),
        dropout=job.execution.dropout_masks,
    )
    output = _matmul(job, tokens, size.queries, hidden, saved=False)
    return Work(matmuls=(*projections, output), traffic=tuple(traffic), attention=(core,))


def _keys_seen(model: Model, length: int) -> float:
    """Causal: half of all, less within a window."""
    window = min(model.sliding_window or length, length)
    return window - window * window / (2 * length)


def _latent_attention(job: Job, size: Size) -> Work:
    """DeepSeek-V2 (arXiv:2405.04434), sec. 2.1: q and kv come down to a rank and up again."""
    model = job.model
    latent = model.latent
    assert latent is not None
    hidden, tokens, heads = model.hidden_size, size.tokens, size.heads
    score = latent.nope_head_dim + latent.rope_head_dim
    queries, values = heads * score, heads * latent.value_head_dim
    moved, matmuls = _moved(job, tokens), []
    if latent.q_rank:
        matmuls.append(_matmul(job, tokens, hidden, latent.q_rank))
    matmuls += [
        _matmul(job, tokens, latent.q_rank or hidden, queries, saved=False),
        _matmul(job, tokens, hidden, latent.kv_rank + latent.rope_head_dim),
        _matmul(
            job, tokens, latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim)
        ),
        _matmul(job, tokens, values, hidden, saved=False),
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
        score_dim=score, value_dim=latent.value_head_dim, seen=_keys_seen(model, size.sequence),
    )  # fmt: skip
    return Work(matmuls=tuple(matmuls), traffic=traffic, attention=(core,))


def _mlp(job: Job, size: Size, ffn: int) -> Work:
    model, hidden, tokens = job.model, job.model.hidden_size, size.tokens
    moved = _moved(job, tokens)
    return Work(
        matmuls=_mlp_matmuls(job, tokens, hidden, ffn),
        traffic=(_activation(model, job.execution, moved, ffn),),
    )


def _mlp_matmuls(job: Job, tokens: int, hidden: int, ffn: int) -> tuple[Matmul, ...]:
    up: tuple[Matmul, ...] = (_matmul(job, tokens, hidden, ffn),)
    if job.model.is_gated and job.execution.fusion == "fused":  # Megatron: one product for both
        up = (_matmul(job, tokens, hidden, 2 * ffn),)
    elif job.model.is_gated:
        up = (*up, _matmul(job, tokens, hidden, ffn, saved=False))
    return (*up, _matmul(job, tokens, ffn, hidden, saved=job.model.is_gated))


def _activation(
    model: Model, execution: Execution, moved: Callable[..., Traffic], ffn: int
) -> Traffic:
    if model.is_gated:
        forward, backward = GATE[execution.fusion]
        kernels = 2 if execution.fusion == "eager" else 1
        return moved(forward * ffn, backward * ffn, kernels, kernels)
    return moved(2 * ffn, 3 * ffn, 1, 1)


def _experts(job: Job, size: Size) -> Work:
    """Router, exchange of tokens, experts, exchange back; shared experts beside."""
    model, layout = job.model, job.layout
    experts = model.experts
    assert experts is not None
    hidden, tokens = model.hidden_size, size.tokens
    local = max(1, experts.num_experts // layout.ep)
    routed = tokens * experts.experts_per_token  # of all ranks' tokens as many come as go
    ffn = experts.ffn_hidden_size // (layout.tp if layout.ep == 1 else 1)
    # ep ranks work on whole experts: their tokens are those of the whole tp group.
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
    moved, moved_routed = _moved(job, tokens), _moved(job, routed)
    traffic = (
        moved(2 * hidden + 8 * experts.num_experts, 2 * hidden + 8 * experts.num_experts, 12, 8),
        # Sorted by expert before and after the exchange, weighted and summed on return.
        moved_routed(8 * hidden, 8 * hidden, 6, 6),
        _activation(model, job.execution, moved_routed, ffn),
    )
    shared = (
        _mlp(job, size, experts.num_shared * experts.ffn_hidden_size // layout.tp)
        if experts.num_shared
        else Work()
    )
    router = _matmul(job, tokens, hidden, experts.num_experts)
    return _join(
        Work(
            matmuls=(router,), grouped=grouped, traffic=traffic,
            all_to_all_bytes=float(routed * hidden * element) if layout.ep > 1 else 0.0,
        ),
        shared,
    )  # fmt: skip


def embedding_work(job: Job) -> Work:
    """Looking up tokens; backward adds up float32 rows."""
    size = size_of(job)
    moved = _moved(job, size.tokens)
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
    moved = _moved(job, size.norm_tokens)
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
