"""What the model is made of: every parameter's name, shape and shard, and exact counts.

The one home of names and shapes: the runtime's modules are compared with this table by test.
Linear weights are [out, in]. Column-parallel layers are cut along dim 0 (outputs), row-parallel
ones along dim 1 (inputs), as in Megatron-LM (arXiv:1909.08053, sec. 3).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from launcher.config.schema import Experts, Model
from launcher.frozen import frozen


@frozen
class ParameterSpec:
    """One parameter of the whole model, before any cut."""

    name: str
    """Full logical name, the same in every layout."""
    shape: tuple[int, ...]
    """Shape in one process, without padding."""
    tp_dim: int | None = None
    """Dimension cut over tp; None: every rank of the tp group holds a copy."""
    is_kv: bool = False
    """Made of key or value heads: where tp exceeds them, neighbours hold copies of one head."""
    is_vocabulary: bool = False
    """Has one row per token: padded up to a multiple of tp."""
    num_units: int = 1
    """Indivisible pieces along tp_dim (heads, columns, tokens)."""
    is_expert: bool = False
    """Belongs to one routed expert; experts are dealt out over ep."""

    @property
    def size(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """Shape on one of tp ranks, padding and copies included."""
        if self.tp_dim is None:
            return self.shape
        units = -(-self.num_units // tp)  # at least one: a kv head or the padded vocabulary
        cut = self.shape[self.tp_dim] // self.num_units * units
        return (*self.shape[: self.tp_dim], cut, *self.shape[self.tp_dim + 1 :])

    def local_size(self, tp: int) -> int:
        """Number of elements on one of tp ranks."""
        return math.prod(self.local_shape(tp))


def parameter_table(model: Model) -> tuple[ParameterSpec, ...]:
    """Every parameter once, in the order of the forward pass."""
    table = embedding_parameters(model)
    for layer in range(model.num_layers):
        table += block_parameters(model, layer)
    return table + head_parameters(model)


def count_parameters(model: Model) -> int:
    """Parameters of the model, each once: GPT-2 has 124,439,808."""
    ends = embedding_parameters(model) + head_parameters(model)
    plain = model.num_plain
    blocks = (model.num_layers - plain) * sum_sizes(block_parameters(model, model.usual_block))
    if plain:
        blocks += plain * sum_sizes(block_parameters(model, 0))
    return sum_sizes(ends + encoder_parameters(model)) + blocks


def sum_sizes(specs: tuple[ParameterSpec, ...], tp: int = 1) -> int:
    """Elements of these parameters; with tp > 1, of one rank's share."""
    if tp == 1:
        return sum(spec.size for spec in specs)
    return sum(spec.local_size(tp) for spec in specs)


def embedding_parameters(model: Model) -> tuple[ParameterSpec, ...]:
    """Token table and, where positions are learned, their table."""
    specs: tuple[ParameterSpec, ...] = (_vocabulary("embedding.tokens.weight", model),)
    if model.position == "learned":
        shape = (model.max_sequence_length, model.hidden_size)
        specs += (ParameterSpec(name="embedding.positions.weight", shape=shape),)
    return specs


@lru_cache(maxsize=16)
def block_parameters(model: Model, layer: int) -> tuple[ParameterSpec, ...]:
    """Norms, attention and MLP (or experts) of one block; of hundreds of experts that takes long,
    and a search asks for the first and the last block again and again.
    """
    at = f"layers.{layer}"
    specs = _norm(f"{at}.attention_norm", model)
    specs += _latent(at, model) if model.latent else _attention(at, model)
    if model.encoder:
        specs += _norm(f"{at}.cross_norm", model) + _attention(at, model, "cross_attention")
    specs += _norm(f"{at}.mlp_norm", model)
    if model.experts is None or model.experts.is_plain(layer):
        return specs + _mlp(f"{at}.mlp", model, model.ffn_hidden_size)
    return specs + _experts(at, model, model.experts)


def encoder_parameters(model: Model) -> tuple[ParameterSpec, ...]:
    """The encoder's blocks and last norm, and the position biases of both sides; else none."""
    if model.encoder is None:
        return ()
    alone = model.model_copy(update={"encoder": None})
    specs: tuple[ParameterSpec, ...] = ()
    for layer in range(model.encoder.num_layers):
        block = block_parameters(alone, layer)
        specs += tuple(replace(spec, name=f"encoder.{spec.name}") for spec in block)
    specs += _norm("encoder.final_norm", model)
    shape, heads = (model.encoder.relative_buckets, model.num_heads), model.num_heads
    if model.encoder.relative_buckets:
        for name in ("encoder.position_bias", "position_bias"):
            specs += (ParameterSpec(name=name, shape=shape, tp_dim=1, num_units=heads),)
    return specs


def _attention(at: str, model: Model, name: str = "attention") -> tuple[ParameterSpec, ...]:
    hidden, heads, kv_heads = model.hidden_size, model.num_heads, model.kv_heads
    queries, keys = heads * model.head_size, kv_heads * model.head_size
    specs = _column(f"{at}.{name}.q_proj", hidden, queries, model.bias, heads)
    specs += _column(f"{at}.{name}.k_proj", hidden, keys, model.bias, kv_heads, is_kv=True)
    specs += _column(f"{at}.{name}.v_proj", hidden, keys, model.bias, kv_heads, is_kv=True)
    return specs + _row(f"{at}.{name}.out_proj", queries, hidden, model.bias, heads)


def _latent(at: str, model: Model) -> tuple[ParameterSpec, ...]:
    """Multi-head latent attention (arXiv:2405.04434): the narrow projections are not cut."""
    latent, hidden, heads = model.latent, model.hidden_size, model.num_heads
    assert latent is not None
    at = f"{at}.attention"
    score = latent.nope_head_dim + latent.rope_head_dim
    specs: tuple[ParameterSpec, ...] = ()
    if latent.q_rank:
        specs += (ParameterSpec(name=f"{at}.q_down.weight", shape=(latent.q_rank, hidden)),)
        specs += (ParameterSpec(name=f"{at}.q_norm.weight", shape=(latent.q_rank,)),)
    specs += _column(f"{at}.q_proj", latent.q_rank or hidden, heads * score, False, heads)
    narrow = latent.kv_rank + latent.rope_head_dim
    specs += (ParameterSpec(name=f"{at}.kv_down.weight", shape=(narrow, hidden)),)
    specs += (ParameterSpec(name=f"{at}.kv_norm.weight", shape=(latent.kv_rank,)),)
    wide = heads * (latent.nope_head_dim + latent.value_head_dim)
    specs += _column(f"{at}.kv_proj", latent.kv_rank, wide, False, heads)
    return specs + _row(f"{at}.out_proj", heads * latent.value_head_dim, hidden, False, heads)


def _mlp(at: str, model: Model, ffn: int) -> tuple[ParameterSpec, ...]:
    hidden = model.hidden_size
    specs: tuple[ParameterSpec, ...] = ()
    if model.is_gated:
        specs += _column(f"{at}.gate_proj", hidden, ffn, model.bias, ffn)
    specs += _column(f"{at}.up_proj", hidden, ffn, model.bias, ffn)
    return specs + _row(f"{at}.down_proj", ffn, hidden, model.bias, ffn)


def _experts(at: str, model: Model, experts: Experts) -> tuple[ParameterSpec, ...]:
    """Router, routed experts one by one, and the shared ones as a single wide MLP."""
    shape = (experts.num_experts, model.hidden_size)
    specs: tuple[ParameterSpec, ...] = (ParameterSpec(name=f"{at}.router.weight", shape=shape),)
    for expert in range(experts.num_experts):
        mlp = _mlp(f"{at}.experts.{expert}", model, experts.ffn_hidden_size)
        specs += tuple(replace(spec, is_expert=True) for spec in mlp)
    if experts.num_shared:
        specs += _mlp(f"{at}.shared", model, experts.num_shared * experts.ffn_hidden_size)
    return specs


def head_parameters(model: Model) -> tuple[ParameterSpec, ...]:
    """Last norm and, where it is not the token table, the output head."""
    specs = _norm("final_norm", model)
    if not model.tie_embeddings:
        specs += (_vocabulary("head.weight", model),)
    return specs


def tied_copy(model: Model) -> tuple[ParameterSpec, ...]:
    """The token table again: what the last of several stages holds of tied embeddings."""
    return (_vocabulary("embedding.tokens.weight", model),) if model.tie_embeddings else ()


def _vocabulary(name: str, model: Model) -> ParameterSpec:
    return ParameterSpec(
        name=name,
        shape=(model.vocab_size, model.hidden_size),
        tp_dim=0,
        is_vocabulary=True,
        num_units=model.vocab_size,
    )


def _norm(name: str, model: Model) -> tuple[ParameterSpec, ...]:
    parts = ("weight", "bias") if model.norm == "layernorm" else ("weight",)
    return tuple(ParameterSpec(name=f"{name}.{part}", shape=(model.hidden_size,)) for part in parts)


def _column(
    name: str, inputs: int, outputs: int, bias: bool, units: int, is_kv: bool = False
) -> tuple[ParameterSpec, ...]:
    weight = ParameterSpec(
        name=f"{name}.weight", shape=(outputs, inputs), tp_dim=0, is_kv=is_kv, num_units=units
    )
    if not bias:
        return (weight,)
    return (
        weight,
        ParameterSpec(
            name=f"{name}.bias", shape=(outputs,), tp_dim=0, is_kv=is_kv, num_units=units
        ),
    )


def _row(name: str, inputs: int, outputs: int, bias: bool, units: int) -> tuple[ParameterSpec, ...]:
    weight = ParameterSpec(
        name=f"{name}.weight", shape=(outputs, inputs), tp_dim=1, num_units=units
    )
    # The bias is added once, after the partial sums are reduced: every rank holds all of it.
    return (weight, ParameterSpec(name=f"{name}.bias", shape=(outputs,))) if bias else (weight,)
