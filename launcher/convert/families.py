"""Which Hugging Face classes are understood: their config keys and tensors beside ours, as a table.

Both directions read the same rows. A model of ours belongs to the first family whose constants
it has (`choose_family`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import Model


@dataclass(frozen=True, kw_only=True)
class ConfigKey:
    """A key of config.json and the field of `Model` that says the same."""

    key: str
    field: str
    default: Any = None
    """What the class takes where the key is absent; it differs from class to class."""
    values: Mapping[str, str] | None = None
    """Theirs -> ours, where words differ; the first of several words is the one we write."""


@dataclass(frozen=True, kw_only=True)
class FixedKey:
    """A key that changes what the model computes, and the only value that ours computes."""

    key: str
    value: Any
    is_written: bool = False
    """Whether config.json needs it, because the class defaults to something else."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of theirs: ours one below the other, transposed where a layer is stored so."""

    name: str
    """Their name without prefix; {layer} is the block's number."""
    parts: tuple[str, ...]
    """Our full names, joined along the first dimension."""
    is_transposed: bool = False
    """Stored [in, out] (GPT-2's Conv1D), ours are [out, in]."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of `transformers`."""

    architecture: str
    """Name of the class, as in config.json."""
    model_type: str
    constants: Mapping[str, Any]
    """Fields of `Model` that every model of the class has."""
    keys: tuple[ConfigKey, ...]
    fixed: tuple[FixedKey, ...] = ()
    has_rotary_keys: bool
    """Whether config.json has rope_theta and its scaling."""
    prefix: str
    """Before every name but the head's; files saved from the bare model lack it."""
    entries: tuple[Entry, ...]
    ignored_tensors: tuple[str, ...] = ()
    """Endings of names that old versions stored beside the weights: masks, frequencies."""


def _same(**pairs: str) -> tuple[Entry, ...]:
    """Modules with the same weight, and bias where there is one, under another name."""
    return tuple(
        Entry(name=f"{theirs}.{part}", parts=(f"{ours}.{part}",))
        for theirs, ours in pairs.items()
        for part in ("weight", "bias")
    )


def _conv1d(name: str, *parts: str) -> tuple[Entry, ...]:
    weights = tuple(f"{part}.weight" for part in parts)
    biases = tuple(f"{part}.bias" for part in parts)
    return (
        Entry(name=f"{name}.weight", parts=weights, is_transposed=True),
        Entry(name=f"{name}.bias", parts=biases),
    )


_OURS, _THEIRS = "layers.{layer}", "h.{layer}"
_HEAD = Entry(name="lm_head.weight", parts=("head.weight",))

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    constants={
        "position": "learned", "norm": "layernorm", "bias": True, "num_kv_heads": None,
        "head_dim": None, "sliding_window": None, "rope_scaling": None,
    },
    keys=(
        ConfigKey(key="n_layer", field="num_layers", default=12),
        ConfigKey(key="n_embd", field="hidden_size", default=768),
        ConfigKey(key="n_head", field="num_heads", default=12),
        ConfigKey(key="n_inner", field="ffn_hidden_size"),  # absent: 4 x n_embd
        ConfigKey(key="vocab_size", field="vocab_size", default=50257),
        ConfigKey(key="n_positions", field="max_sequence_length", default=1024),
        ConfigKey(key="layer_norm_epsilon", field="norm_eps", default=1e-5),
        ConfigKey(
            key="activation_function", field="activation", default="gelu_new",
            values={
                "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_fast": "gelu_tanh", "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
            },
        ),
        ConfigKey(key="tie_word_embeddings", field="tie_embeddings", default=True),
        ConfigKey(key="embd_pdrop", field="dropout", default=0.1),
        ConfigKey(key="resid_pdrop", field="dropout", default=0.1),
        ConfigKey(key="attn_pdrop", field="attention_dropout", default=0.1),
        ConfigKey(key="initializer_range", field="init_std", default=0.02),
    ),
    fixed=(
        FixedKey(key="scale_attn_weights", value=True),
        FixedKey(key="scale_attn_by_inverse_layer_idx", value=False),
        FixedKey(key="add_cross_attention", value=False),
    ),
    has_rotary_keys=False,
    prefix="transformer.",
    entries=(
        *_same(**{"wte": "embedding.tokens", "wpe": "embedding.positions"}),
        *_same(**{f"{_THEIRS}.ln_1": f"{_OURS}.attention_norm"}),
        *_conv1d(
            f"{_THEIRS}.attn.c_attn",
            *(f"{_OURS}.attention.{name}_proj" for name in ("q", "k", "v")),
        ),
        *_conv1d(f"{_THEIRS}.attn.c_proj", f"{_OURS}.attention.out_proj"),
        *_same(**{f"{_THEIRS}.ln_2": f"{_OURS}.mlp_norm"}),
        *_conv1d(f"{_THEIRS}.mlp.c_fc", f"{_OURS}.mlp.up_proj"),
        *_conv1d(f"{_THEIRS}.mlp.c_proj", f"{_OURS}.mlp.down_proj"),
        *_same(ln_f="final_norm"),
        _HEAD,
    ),
    ignored_tensors=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip

_LLAMA_KEYS = (
    ConfigKey(key="num_hidden_layers", field="num_layers", default=32),
    ConfigKey(key="hidden_size", field="hidden_size", default=4096),
    ConfigKey(key="num_attention_heads", field="num_heads", default=32),
    ConfigKey(key="head_dim", field="head_dim"),
    ConfigKey(key="vocab_size", field="vocab_size", default=32000),
    ConfigKey(key="rms_norm_eps", field="norm_eps", default=1e-6),
    ConfigKey(key="hidden_act", field="activation", default="silu", values={"silu": "swiglu"}),
    ConfigKey(key="tie_word_embeddings", field="tie_embeddings", default=False),
    ConfigKey(key="attention_dropout", field="attention_dropout", default=0.0),
    ConfigKey(key="initializer_range", field="init_std", default=0.02),
)
_LLAMA_CONSTANTS = {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "dropout": 0.0}
_LLAMA_ENTRIES = (
    *_same(embed_tokens="embedding.tokens"),
    *_same(
        **{
            f"{_OURS}.input_layernorm": f"{_OURS}.attention_norm",
            f"{_OURS}.self_attn.q_proj": f"{_OURS}.attention.q_proj",
            f"{_OURS}.self_attn.k_proj": f"{_OURS}.attention.k_proj",
            f"{_OURS}.self_attn.v_proj": f"{_OURS}.attention.v_proj",
            f"{_OURS}.self_attn.o_proj": f"{_OURS}.attention.out_proj",
            f"{_OURS}.post_attention_layernorm": f"{_OURS}.mlp_norm",
            f"{_OURS}.mlp.gate_proj": f"{_OURS}.mlp.gate_proj",
            f"{_OURS}.mlp.up_proj": f"{_OURS}.mlp.up_proj",
            f"{_OURS}.mlp.down_proj": f"{_OURS}.mlp.down_proj",
        }
    ),
    *_same(norm="final_norm"),
    _HEAD,
)

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    constants=_LLAMA_CONSTANTS | {"sliding_window": None},
    keys=(
        *_LLAMA_KEYS,
        ConfigKey(key="num_key_value_heads", field="num_kv_heads"),
        ConfigKey(key="intermediate_size", field="ffn_hidden_size", default=11008),
        ConfigKey(key="max_position_embeddings", field="max_sequence_length", default=2048),
        ConfigKey(key="attention_bias", field="bias", default=False),
        ConfigKey(key="mlp_bias", field="bias", default=False),
    ),
    has_rotary_keys=True,
    prefix="model.",
    entries=_LLAMA_ENTRIES,
    ignored_tensors=(".rotary_emb.inv_freq",),
)

MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    constants=_LLAMA_CONSTANTS | {"bias": False},
    keys=(
        *_LLAMA_KEYS,
        ConfigKey(key="num_key_value_heads", field="num_kv_heads", default=8),
        ConfigKey(key="intermediate_size", field="ffn_hidden_size", default=14336),
        ConfigKey(key="max_position_embeddings", field="max_sequence_length", default=131072),
        ConfigKey(key="sliding_window", field="sliding_window", default=4096),
    ),
    fixed=(FixedKey(key="attention_bias", value=False), FixedKey(key="mlp_bias", value=False)),
    has_rotary_keys=True,
    prefix="model.",
    entries=_LLAMA_ENTRIES,
    ignored_tensors=(".rotary_emb.inv_freq",),
)

FAMILIES = (GPT2, LLAMA, MISTRAL)
"""Yi's published models are LlamaForCausalLM; GPT-3 has no class, and is a GPT-2 in shape."""

_NEUTRAL = """
    architectures model_type transformers_version torch_dtype dtype use_cache
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class name_or_path
    task_specific_params id2label label2id num_labels problem_type return_dict
    return_dict_in_generate
    output_attentions output_hidden_states output_scores torchscript finetuning_task prefix
    gradient_checkpointing chunk_size_feed_forward pretraining_tp n_ctx reorder_and_upcast_attn
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    use_bfloat16 tf_legacy_loss pruned_heads tie_encoder_decoder is_decoder is_encoder_decoder
    cross_attention_hidden_size max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    remove_invalid_values attn_implementation unsloth_version unsloth_fixed
"""
NEUTRAL_KEYS = frozenset(_NEUTRAL.split())
"""Keys of config.json that change neither weights nor logits."""

TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that we do not know ourselves, and copy from a config.json that came with the tokenizer."""


_FREE_FIELDS = frozenset({"name", "rope_theta", "dropout"})
"""Fields that change nothing for a class that has no key for them: it does not train with ours."""


def family_of(architecture: str) -> Family | None:
    """The family of a class; None where it is not understood."""
    return next((family for family in FAMILIES if family.architecture == architecture), None)


def choose_family(model: Model, preferred: Family | None = None) -> Family | None:
    """A class that computes what the model computes, if possible the preferred; None: none does."""
    candidates = FAMILIES if preferred is None else (preferred, *FAMILIES)
    return next((family for family in candidates if not differences(family, model)), None)


def differences(family: Family, model: Model) -> list[str]:
    """Why a class cannot hold a model: `model.norm=layernorm (LlamaForCausalLM: rmsnorm)`."""
    own = plain_fields(model)
    spoken = {row.field for row in family.keys} | _FREE_FIELDS
    spoken |= {"rope_scaling"} if family.has_rotary_keys else set()
    needed = {
        # A field that the family does not speak of must be absent, as experts are.
        **{name: info.default for name, info in Model.model_fields.items() if name not in spoken},
        **family.constants,
    }
    found = [
        f"model.{name}={own[name]} ({family.architecture}: {value})"
        for name, value in needed.items()
        if own[name] != value and name not in _FREE_FIELDS
    ]
    for row in family.keys:
        if row.values and own[row.field] not in row.values.values() and not any(
            row.field == name for name in family.constants
        ):  # fmt: skip
            found.append(f"model.{row.field}={own[row.field]} ({family.architecture}: none such)")
    if family is LLAMA and model.hidden_size % model.num_heads:
        # LlamaConfig refuses it even where head_dim is given; MistralConfig does not.
        found.append(f"model.num_heads={model.num_heads} ({family.architecture}: divides hidden)")
    return found


def plain_fields(model: Model) -> dict[str, Any]:
    """The fields of a model; None where a value is what the default would be anyway."""
    fields = model.model_dump(mode="json")
    if model.kv_heads == model.num_heads:
        fields["num_kv_heads"] = None
    if model.head_size * model.num_heads == model.hidden_size:
        fields["head_dim"] = None
    return fields
