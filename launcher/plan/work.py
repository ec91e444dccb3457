"""Model FLOPs: what training costs however it is run, and conventions of counting them."""

from __future__ import annotations

from launcher.config.schema import Model

ROW_CHUNKS = 4
"""Column chunks of a row-parallel product whose sums run beside the chunks behind them."""


def forward_flops_per_token(
    model: Model, sequence_length: int, *, causal: bool = True, with_head: bool = True
) -> float:
    """Matrix products of the whole model for one token; causal attention at half."""
    if model.encoder:
        return _encoder_decoder_flops(model, sequence_length, causal, with_head)
    attention = _seen(model, sequence_length) if causal else sequence_length
    block = 2.0 * _attention_weights(model) + 2.0 * attention * _attention_width(model)
    total = model.num_layers * block + 2.0 * _mlp_weights(model)
    return total + (2.0 * model.hidden_size * model.vocab_size if with_head else 0.0)


def _encoder_decoder_flops(model: Model, length: int, causal: bool, with_head: bool) -> float:
    """For one input token, with the target tokens that come with it."""
    encoder = model.encoder
    assert encoder is not None
    alone = model.model_copy(update={"encoder": None})
    target = encoder.decoder_length or length
    read = alone.model_copy(update={"num_layers": encoder.num_layers})
    total = forward_flops_per_token(read, length, causal=False, with_head=False)
    written = forward_flops_per_token(alone, target, causal=causal, with_head=with_head)
    width = model.num_heads * model.head_size
    queries = 2.0 * model.num_layers * 2 * model.hidden_size * width  # in and out
    keys = 2.0 * model.num_layers * 2 * model.hidden_size * model.kv_heads * model.head_size
    written += queries + 2.0 * model.num_layers * length * 2 * width
    return total + keys + written * target / length


def model_flops_per_token(model: Model, sequence_length: int, *, causal: bool = True) -> float:
    """Forward and backward, without recomputation; backward is twice the forward."""
    return 3 * forward_flops_per_token(model, sequence_length, causal=causal)


def _seen(model: Model, length: int) -> float:
    """Keys that a query sees on average: half of all, less within a window."""
    window = min(model.sliding_window or length, length)
    return window - window * window / (2 * length)


def _attention_width(model: Model) -> int:
    """Columns of scores and of values, over all heads."""
    if model.latent:
        latent = model.latent
        score = latent.nope_head_dim + latent.rope_head_dim
        return model.num_heads * (score + latent.value_head_dim)
    return 2 * model.num_heads * model.head_size


def _attention_weights(model: Model) -> int:
    """Matrix elements of one block's attention."""
    hidden, heads = model.hidden_size, model.num_heads
    if model.latent is None:
        return 2 * hidden * model.head_size * (heads + model.kv_heads)
    latent = model.latent
    score = latent.nope_head_dim + latent.rope_head_dim
    queries = heads * score
    down = hidden * (latent.kv_rank + latent.rope_head_dim) + hidden * (latent.q_rank or 0)
    up = (latent.q_rank or hidden) * queries
    up += latent.kv_rank * heads * (latent.nope_head_dim + latent.value_head_dim)
    return down + up + heads * latent.value_head_dim * hidden


def _mlp_weights(model: Model) -> int:
    """Matrix elements that one token meets in all MLPs; of experts those that it visits."""
    matrices = (3 if model.is_gated else 2) * model.hidden_size
    if model.experts is None:
        return model.num_layers * matrices * model.ffn_hidden_size
    experts = model.experts
    visited = (experts.experts_per_token + experts.num_shared) * experts.ffn_hidden_size
    routed = matrices * visited + model.hidden_size * experts.num_experts
    dense = model.num_plain
    return (model.num_layers - dense) * routed + dense * matrices * model.ffn_hidden_size
