"""What a model is made of, as facts."""

from typing import Annotated, Literal

from launcher.config.record import (
    Fraction,
    Layers,
    NumExperts,
    Positive,
    PositiveFloat,
    Record,
    Width,
)
from launcher.config.record_marks import Range
from launcher.config.resume_class import Forbidden, Numerics, Safe


class RopeScaling(Record):
    """Llama 3.1's frequency-dependent stretching of rotary positions."""

    factor: Forbidden[PositiveFloat]
    """By how much low frequencies are stretched."""
    low_freq_factor: Forbidden[PositiveFloat]
    """Wavelengths longer than original_max_position / this are stretched in full."""
    high_freq_factor: Forbidden[PositiveFloat]
    """Wavelengths shorter than original_max_position / this are left alone."""
    original_max_position: Forbidden[Positive]
    """Sequence length of the pre-training before the stretch."""


class Experts(Record):
    """A mixture of experts in place of the MLP of most blocks."""

    num_experts: Forbidden[NumExperts]
    """Routed experts per block."""
    experts_per_token: Forbidden[NumExperts]
    """Routed experts that each token visits."""
    ffn_hidden_size: Forbidden[Positive]
    """Inner width of one routed expert."""
    num_shared: Forbidden[Annotated[int, Range(ge=0)]] = 0
    """Experts that every token visits, each as wide as a routed one."""
    num_dense_layers: Forbidden[Annotated[int, Range(ge=0)]] = 0
    """First blocks that keep the plain MLP."""
    every: Forbidden[Layers] = 1
    """Of the blocks behind those, the ones with experts: block `every` - 1 of the model, counted
    from 0, and every so many on. The others keep the plain MLP, too."""

    def is_plain(self, layer: int) -> bool:
        """Whether this block keeps the plain MLP."""
        return layer < self.num_dense_layers or (layer + 1) % self.every != 0

    def count_plain(self, first: int, end: int) -> int:
        """Blocks from `first` up to, not including, `end` that keep it."""
        return end - first - self._experts_before(end) + self._experts_before(first)

    def _experts_before(self, end: int) -> int:
        return end // self.every - min(end, self.num_dense_layers) // self.every


class LatentAttention(Record):
    """Multi-head latent attention: keys and values from a narrow projection (DeepSeek-V2)."""

    kv_rank: Forbidden[Positive]
    """Width that keys and values are compressed to."""
    q_rank: Forbidden[Positive | None] = None
    """Width that queries are compressed to; None: they are not."""
    nope_head_dim: Forbidden[Positive]
    """Per head and key: columns without position."""
    rope_head_dim: Forbidden[Positive]
    """Per key, shared by all heads: columns with rotary position."""
    value_head_dim: Forbidden[Positive]
    """Columns per value head."""


class Encoder(Record):
    """What reads the input of an encoder-decoder (T5): blocks as wide as the model's own, which are
    then the decoder's and attend to its output besides.
    """

    num_layers: Forbidden[Layers]
    """Encoder blocks; the model's num_layers counts those of the decoder."""
    decoder_length: Forbidden[Width | None] = None
    """Target tokens per sample, where train.sequence_length is the input's; None: as many."""
    relative_buckets: Forbidden[Annotated[int, Range(ge=0)]] = 0
    """Learned biases of relative positions per head, one table for each side; 0: none."""


class Model(Record):
    """A decoder, as facts: GPT-2, GPT-3, Llama, Mistral and Yi differ in these fields only."""

    name: Safe[str]
    """Name in reports; the file's name under conf/model."""
    num_layers: Forbidden[Layers]
    """Transformer blocks."""
    hidden_size: Forbidden[Width]
    """Width of the residual stream."""
    num_heads: Forbidden[Width]
    """Query heads."""
    num_kv_heads: Forbidden[Width | None] = None
    """Key and value heads (GQA); None: as many as num_heads."""
    head_dim: Forbidden[Width | None] = None
    """Width of one head; None: hidden_size / num_heads."""
    ffn_hidden_size: Forbidden[Width]
    """Inner width of the MLP."""
    vocab_size: Forbidden[Width]
    """Rows of the token embedding, without padding."""
    max_sequence_length: Forbidden[Width]
    """Longest sequence the positions are made for."""
    position: Forbidden[Literal["learned", "rope", "none"]] = "rope"
    """How positions enter: a learned table, rotary embedding or not at all."""
    norm: Forbidden[Literal["layernorm", "rmsnorm"]] = "rmsnorm"
    """Normalisation before attention, before the MLP and after the last block."""
    norm_eps: Forbidden[PositiveFloat] = 1e-5
    """Added to the variance."""
    activation: Forbidden[Literal["gelu", "gelu_tanh", "relu", "swiglu"]] = "swiglu"
    """MLP activation; swiglu has a third (gate) projection."""
    bias: Forbidden[bool] = False
    """Biases on all linear layers of the blocks."""
    tie_embeddings: Forbidden[bool] = False
    """The output head is the token embedding."""
    rope_theta: Forbidden[PositiveFloat] = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: Forbidden[RopeScaling | None] = None
    """Stretching of rotary positions; None: none."""
    sliding_window: Forbidden[Positive | None] = None
    """Each token sees this many tokens back, itself included; None: all."""
    dropout: Numerics[Fraction] = 0.0
    """Dropout on the embedding and on both residual branches."""
    attention_dropout: Numerics[Fraction] = 0.0
    """Dropout on attention probabilities."""
    init_std: Safe[PositiveFloat] = 0.02
    """Standard deviation of initial weights; residual projections get it / sqrt(2 num_layers)."""
    experts: Forbidden[Experts | None] = None
    """None: every block has one MLP."""
    latent: Forbidden[LatentAttention | None] = None
    """None: plain, grouped or multi-query attention."""

    encoder: Forbidden[Encoder | None] = None
    """None: a decoder alone."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default applied."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one head, with the default applied."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def num_plain(self) -> int:
        """Blocks that keep a plain MLP in a model with experts; 0 without experts."""
        return self.experts.count_plain(0, self.num_layers) if self.experts else 0

    @property
    def usual_block(self) -> int:
        """A block with experts where any have: the last such one."""
        experts, last = self.experts, self.num_layers - 1
        if experts is None:
            return last
        return next((one for one in range(last, -1, -1) if not experts.is_plain(one)), last)

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate projection beside the up projection."""
        return self.activation == "swiglu"
