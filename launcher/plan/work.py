"""What one microbatch makes a rank do: operators with FLOPs and bytes, and the activations kept.

Letters: T = tokens of a microbatch (samples x sequence), H = hidden size, e = bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config.schema import Model

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one weight or activation per compute type."""

LOGIT_BYTES = 4
"""The softmax of the logits is made in float32 in every compute type."""


ROW_CHUNKS = 4
"""Column chunks of a row-parallel product whose sums run beside the chunks behind them."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One kernel's worth of work in the forward pass."""

    flops: float = 0.0
    """2 per multiply-add."""
    bytes_moved: float
    """Read and written."""
    backward_flops: float = 2.0
    """FLOPs of the backward pass over those of the forward pass."""
    backward_kernels: int = 1
    """Kernels of the backward pass: a matrix product has two gradients."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an operator's size depends on besides the model."""

    micro_batch_size: int
    sequence_length: int
    tp: int
    element_bytes: int
    sequence_parallel: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one microbatch."""
        return self.micro_batch_size * self.sequence_length

    @property
    def rest_tokens(self) -> int:
        """Those on which a rank does what lies between cut matrix products: norms, residuals."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens


def block_operators(model: Model, shape: Shape) -> tuple[Operator, ...]:
    """The forward pass of one block on one rank, recomputation aside."""
    queries = model.num_heads // shape.tp * model.head_size
    keys = max(1, model.kv_heads // shape.tp) * model.head_size
    ffn = model.ffn_hidden_size // shape.tp
    hidden = model.hidden_size
    rope = (_memory(shape, 2 * (queries + keys)),) if model.position == "rope" else ()
    gate = (_matmul(shape, hidden, ffn),) if model.is_gated else ()
    residual, norm = _at_rest(shape, 3 * hidden), _at_rest(shape, 2 * hidden)
    return (
        norm,
        _matmul(shape, hidden, queries),
        _matmul(shape, hidden, keys),
        _matmul(shape, hidden, keys),
        *rope,
        _attention(model, shape, queries, keys),
        _matmul(shape, queries, hidden),
        residual,
        norm,
        *gate,
        _matmul(shape, hidden, ffn),
        _memory(shape, (3 if model.is_gated else 2) * ffn),
        _matmul(shape, ffn, hidden),
        residual,
    )


def attention_operators(model: Model, shape: Shape) -> tuple[Operator, ...]:
    """The part of a block that selective recomputation runs again."""
    queries = model.num_heads // shape.tp * model.head_size
    keys = max(1, model.kv_heads // shape.tp) * model.head_size
    return (_attention(model, shape, queries, keys),)


def embedding_operators(model: Model, shape: Shape) -> tuple[Operator, ...]:
    """Looking up tokens and positions."""
    return (_memory(shape, 2 * model.hidden_size),)


def head_operators(model: Model, shape: Shape) -> tuple[Operator, ...]:
    """Last norm, logits, loss."""
    rows = -(-model.vocab_size // shape.tp)
    softmax = Operator(bytes_moved=4.0 * LOGIT_BYTES * shape.tokens * rows)
    return (
        _at_rest(shape, 2 * model.hidden_size),
        _matmul(shape, model.hidden_size, rows),
        softmax,
    )


def forward_flops_per_token(model: Model, sequence_length: int) -> float:
    """Matrix products of the whole model for one token, causal attention at half."""
    whole = Shape(micro_batch_size=1, sequence_length=sequence_length, tp=1, element_bytes=2)
    operators = block_operators(model, whole) * model.num_layers + head_operators(model, whole)
    return sum(operator.flops for operator in operators) / sequence_length


def model_flops_per_token(model: Model, sequence_length: int) -> float:
    """Forward and backward, without recomputation; backward is twice the forward."""
    return 3 * forward_flops_per_token(model, sequence_length)


def block_activation_bytes(model: Model, shape: Shape, recompute: str) -> int:
    """What one block keeps of one microbatch from its forward to its backward.

    Without recomputation this is table 2 of arXiv:2205.05198 for attention that stores no S x S
    matrix: for GPT in two-byte numbers (10 + 24/tp) T H bytes. Inputs of norms and of the first
    matrix products are whole on every tp rank, the rest is cut; with sequence parallelism all is,
    and 34/tp T H bytes are left.
    """
    if recompute == "full":
        return shape.rest_tokens * model.hidden_size * shape.element_bytes
    hidden = model.hidden_size
    queries = model.num_heads // shape.tp * model.head_size
    keys = max(1, model.kv_heads // shape.tp) * model.head_size
    ffn = model.ffn_hidden_size // shape.tp
    whole = 4 * hidden  # the block's input, the residual between, and both norms' outputs
    cut = queries + 2 * keys + queries  # q, k, v and what out_proj reads
    cut += (4 if model.is_gated else 2) * ffn  # gate, its silu, up, and what down_proj reads
    masks = 2 * hidden if model.dropout else 0  # one byte per element, after each sublayer
    kept = shape.rest_tokens * (whole * shape.element_bytes + masks)
    kept += shape.tokens * cut * shape.element_bytes
    if recompute == "none":  # the core's own: log-sum-exp per query and head, float32
        kept += shape.tokens * model.num_heads // shape.tp * 4
    return kept


def embedding_activation_bytes(model: Model, shape: Shape) -> int:
    """What the embedding keeps of one microbatch: token ids and a dropout mask."""
    masks = shape.rest_tokens * model.hidden_size if model.dropout else 0
    return 8 * shape.tokens + masks


def head_activation_bytes(model: Model, shape: Shape) -> int:
    """What the head keeps: the last norm's input and output, and the gradient of the logits.

    The loss writes that gradient over the logits in its forward pass, so they are kept once.
    """
    rows = -(-model.vocab_size // shape.tp)
    norm = 2 * shape.rest_tokens * model.hidden_size
    return (norm + shape.tokens * rows) * shape.element_bytes


def logit_temporary_bytes(model: Model, shape: Shape) -> int:
    """The float32 copy of the logits while the loss is made; float32 logits need none."""
    rows = -(-model.vocab_size // shape.tp)
    return 0 if shape.element_bytes == LOGIT_BYTES else shape.tokens * rows * LOGIT_BYTES


def backward_temporary_bytes(model: Model, shape: Shape, recompute: str) -> int:
    """What the backward pass of one block needs beside what was kept.

    Gradients of the residual and of the MLP's widest tensors; with full recomputation, the whole
    block's activations once more.
    """
    ffn = (2 if model.is_gated else 1) * model.ffn_hidden_size // shape.tp
    # Whole beside the pieces: the gradient behind a product, and the gathered input before it.
    pieces = shape.rest_tokens if shape.sequence_parallel else 0
    hidden = 2 * model.hidden_size * (shape.tokens + pieces)
    gradients = (hidden + shape.tokens * ffn) * shape.element_bytes
    again = block_activation_bytes(model, shape, "none") if recompute == "full" else 0
    return gradients + again


def boundary_bytes(model: Model, shape: Shape) -> int:
    """What passes from one stage to the next: every tp rank sends all that it holds between
    products.
    """
    return shape.rest_tokens * model.hidden_size * shape.element_bytes


def hidden_bytes(model: Model, shape: Shape) -> int:
    """One activation of the residual's width, whole."""
    return shape.tokens * model.hidden_size * shape.element_bytes


def _matmul(shape: Shape, inputs: int, outputs: int) -> Operator:
    elements = shape.tokens * (inputs + outputs) + inputs * outputs
    return Operator(
        flops=2.0 * shape.tokens * inputs * outputs,
        bytes_moved=float(elements * shape.element_bytes),
        backward_kernels=2,
    )


def _attention(model: Model, shape: Shape, queries: int, keys: int) -> Operator:
    """Scores and their weighted sum: 2 x 2 x (keys seen) per query and column."""
    length = shape.sequence_length
    window = min(model.sliding_window or length, length)
    seen = window - window * window / (2 * length)  # causal: half of all, less within a window
    return Operator(
        flops=4.0 * shape.tokens * seen * queries,
        bytes_moved=float(shape.tokens * 2 * (queries + keys) * shape.element_bytes),
        # Five products where forward has two: scores again, dV, dP, dQ, dK (arXiv:2307.08691).
        backward_flops=2.5,
    )


def _at_rest(shape: Shape, columns: int) -> Operator:
    """The same between cut matrix products."""
    return Operator(bytes_moved=float(shape.rest_tokens * columns * shape.element_bytes))


def _memory(shape: Shape, columns: int) -> Operator:
    """An elementwise operator that reads and writes so many columns per token."""
    return Operator(bytes_moved=float(shape.tokens * columns * shape.element_bytes))
