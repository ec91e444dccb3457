"""What a rank keeps of one microbatch between forward and backward."""

from __future__ import annotations

from dataclasses import replace

from launcher.config.schema import Experts, LatentAttention
from launcher.plan.context_traffic import dealt_keys
from launcher.plan.encoder import source_tokens
from launcher.plan.execution import Job
from launcher.plan.operator_records import Size, routed_tokens, size_of


def block_kept_bytes(job: Job, recompute: str) -> int:
    """Of one block (the kind with experts, where there is one).

    Without recomputation this is table 2 of arXiv:2205.05198: for GPT in two-byte numbers
    (10 + 24/tp) T H bytes and 5 a S per token where attention writes its scores. Inputs of norms
    and of the first matrix products are whole on every tp rank (cut with sequence parallelism).
    """
    size, model, element = size_of(job), job.model, job.execution.element_bytes
    hidden = model.hidden_size
    whole = size.norm_tokens * hidden
    if recompute == "full":
        return whole * element
    if recompute == "operators":
        cut = 2 * size.queries + size.keys + size.ffn
        scale = 4 * size.tokens * size.heads
        # Eager caches every product's output, even the last one's, which no backward reads.
        outputs = 2 if job.execution.fusion == "eager" else 1
        return (outputs * whole + size.tokens * cut) * element + scale
    masks = 2 * whole if job.execution.dropout_masks else 0
    mlp = (
        _experts_kept(job, size, model.experts)
        if model.experts
        else size.tokens * _mlp_width(job, size.ffn)
    )
    # Inputs of the two norms, and of the products behind them as those products read them.
    inputs = size.tokens * hidden if job.execution.keeps_gathered_inputs else whole
    rest = size.tokens * attention_width(job, size) + mlp
    kept = (2 * whole + 2 * inputs + rest) * element + masks
    if job.execution.saves_quantised and job.execution.matmul == "fp8":
        kept -= _quantised_saving(job, size, inputs)
    if job.model.encoder:
        kept += _cross_kept(job, size, recompute)
    if recompute == "none":
        kept += core_bytes(job, size)
    return kept


def dense_difference_bytes(job: Job, recompute: str) -> int:
    """What a block with a plain MLP keeps beyond one with experts; below zero where it keeps less,
    0 where the model has none.
    """
    experts = job.model.experts
    if experts is None or not job.model.num_plain:
        return 0
    plain = replace(job, model=job.model.model_copy(update={"experts": None}))
    return block_kept_bytes(plain, recompute) - block_kept_bytes(job, recompute)


def _cross_kept(job: Job, size: Size, recompute: str) -> int:
    """Of attention to the encoder's output: the norm's input and output, q, k, v and the result."""
    execution, source = job.execution, source_tokens(job)
    whole = size.norm_tokens * job.model.hidden_size
    width = size.tokens * 2 * size.queries + source * 2 * size.keys
    masks = whole if execution.dropout_masks else 0
    kept = (2 * whole + width) * execution.element_bytes + masks
    if recompute != "none" or execution.attention != "matrix":
        return kept + (size.tokens * size.heads * 4 if recompute == "none" else 0)
    per_score = 5 if execution.dropout_masks else 2
    return kept + per_score * size.tokens * size.heads * job.layout.sequence_length


def _quantised_saving(job: Job, size: Size, inputs: int) -> int:
    """Bytes that 8-bit inputs of products save: behind both norms and behind the activation.

    What attention computed is kept besides, for its own backward: there a byte comes on top.
    Experts read routed copies of tokens; what is behind the norm stays as it is for their router.
    """
    less, experts = job.execution.element_bytes - 1, job.model.experts
    if experts is None:
        return less * (2 * inputs + size.tokens * size.ffn) - size.tokens * size.queries
    layout, routed = job.layout, routed_tokens(job, size)
    ffn = experts.ffn_hidden_size // (layout.tp if layout.ep == 1 else 1)
    shared = experts.num_shared * experts.ffn_hidden_size // layout.tp
    products = inputs + routed * (job.model.hidden_size + ffn) + size.tokens * shared
    return less * products - size.tokens * size.queries


def attention_width(job: Job, size: Size) -> int:
    """q, k, v and what the output projection reads."""
    if job.model.latent:
        return _latent_width(job, job.model.latent, size.heads)
    keys = size.read_keys
    width = 2 * size.queries + 2 * keys
    if job.layout.cp > 1 and job.execution.cp_mode == "ulysses":
        # The core's own output beside the one that came back; heads that several ranks need.
        width += size.queries + 2 * (dealt_keys(job, size) - keys)
    if job.execution.fusion == "fused" and job.model.position == "rope":
        # Values are a view of one product's output, which therefore stays beside what was rotated.
        width += size.queries + size.keys
    return width


def _latent_width(job: Job, latent: LatentAttention, heads: int) -> int:
    """Both narrow tensors and their norms' outputs; q, k, v, and the output's input.

    Keys are put together from two parts, of which the product of one is kept besides.
    """
    narrow = 2 * ((latent.q_rank or 0) + latent.kv_rank) + latent.rope_head_dim
    score = latent.nope_head_dim + latent.rope_head_dim
    return narrow + heads * (2 * score + 2 * latent.value_head_dim)


def _mlp_width(job: Job, ffn: int) -> int:
    """Gated: gate, its silu, up, and what the down projection reads; a fused kernel needs no silu
    kept. Plain: the activation's input and output.
    """
    if not job.model.is_gated:
        return 2 * ffn
    return (4 if job.execution.fusion == "eager" else 3) * ffn


def _experts_kept(job: Job, size: Size, experts: Experts) -> int:
    """Elements: routed copies of tokens before and behind the experts, and the experts' own."""
    layout, hidden = job.layout, job.model.hidden_size
    routed = routed_tokens(job, size)
    ffn = experts.ffn_hidden_size // (layout.tp if layout.ep == 1 else 1)
    shared = experts.num_shared * experts.ffn_hidden_size // layout.tp
    own = routed * (2 * hidden + _mlp_width(job, ffn))
    router = 2 * size.norm_tokens * experts.num_experts
    return own + router + size.tokens * _mlp_width(job, shared)


def core_bytes(job: Job, size: Size) -> int:
    """The core's own: log-sum-exp per query and head, or scores, mask and probabilities."""
    if job.execution.attention != "matrix":
        return size.tokens * size.heads * 4
    per_score = 5 if job.execution.dropout_masks else 2
    return per_score * size.tokens * size.heads * size.sequence


def embedding_kept_bytes(job: Job) -> int:
    """Token ids and a dropout mask."""
    size = size_of(job)
    masks = size.norm_tokens * job.model.hidden_size if job.execution.dropout_masks else 0
    return 8 * size.tokens + masks


def head_kept_bytes(job: Job) -> int:
    """The last norm's input and output, and the gradient of the logits.

    The loss writes that gradient over the logits in its forward pass, so they are kept once.
    """
    size, element = size_of(job), job.execution.element_bytes
    return (2 * size.norm_tokens * job.model.hidden_size + size.tokens * size.vocabulary) * element
