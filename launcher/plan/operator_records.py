"""The kernels that a rank runs, as records: matrix products, attention and memory traffic.

T = tokens of a microbatch on this rank. Traffic is counted in elements per token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from launcher.config.schema import Model
from launcher.plan.encoder import target_length
from launcher.plan.execution import Job
from launcher.plan.kernels import Gemm


class Matmul(NamedTuple):
    """A product with a weight: backward is one product for the input and one for the weight."""

    forward: Gemm
    is_quantised: bool = True
    """Runs in the blocks' matrix type; the head does not."""
    saved: bool = True
    """Kept, where recomputation is by operator; every second product is not."""


class Traffic(NamedTuple):
    """Kernels that move memory only."""

    forward_bytes: float
    backward_bytes: float
    forward_kernels: int = 1
    backward_kernels: int = 1


class Attention(NamedTuple):
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


class Work(NamedTuple):
    """The kernels of one block (or of one end of the model)."""

    matmuls: tuple[Matmul, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    attention: tuple[Attention, ...] = ()
    all_to_all_bytes: float = 0.0
    """What each of two exchanges of tokens between experts sends per pass."""
    grouped: tuple[Matmul, ...] = ()
    """Products of the experts, one kernel for all of them."""


class Size(NamedTuple):
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
    """As projected; as many values."""
    read_keys: int
    """As attention reads them and cp sends them: perhaps a copy for every query head."""
    heads: int
    ffn: int
    vocabulary: int


def size_of(job: Job) -> Size:
    """Sizes on one rank of this layout; of an encoder-decoder those of its decoder."""
    kept = job.__dict__  # a plan asks a hundred times for the size of one job
    if "_size" not in kept:
        kept["_size"] = _job_size(job)
    size: Size = kept["_size"]
    return size


def _job_size(job: Job) -> Size:
    layout, execution = job.layout, job.execution
    return _size(
        job.model, layout.tp, layout.cp, layout.micro_batch_size, layout.sequence_length,
        execution.sequence_parallel, execution.repeats_keys,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _size(
    model: Model, tp: int, cp: int, batch: int, input_length: int, is_split: bool,
    repeats_keys: bool,
) -> Size:  # fmt: skip
    length = target_length(model, input_length)
    tokens = batch * length // cp
    queries = model.num_heads // tp * model.head_size
    keys = max(1, model.kv_heads // tp) * model.head_size
    return Size(
        batch=batch,
        tokens=tokens,
        sequence=length,
        norm_tokens=-(-tokens // tp) if is_split else tokens,
        queries=queries,
        keys=keys,
        read_keys=queries if repeats_keys else keys,
        heads=model.num_heads // tp,
        ffn=-(-model.ffn_hidden_size // tp),
        vocabulary=-(-model.vocab_size // tp),
    )


def routed_tokens(job: Job, size: Size) -> int:
    """Copies of tokens that a rank sends to experts; 0 without experts.

    With ep, experts are whole and tp ranks, which hold different ones, send a share of the tokens
    each. Without, every tp rank has a part of all experts and so needs all tokens.
    """
    layout, experts = job.layout, job.model.experts
    if experts is None:
        return 0
    tokens = -(-size.tokens // layout.tp) if layout.ep > 1 else size.tokens
    return tokens * experts.experts_per_token


NORM = {"eager": (18, 24), "fused": (2, 3), "compiled": (2, 3)}
"""Elements of H read and written by a norm forward and backward. Eager RMSNorm is a chain of
float32 kernels: upcast, square, mean, root, two products, downcast; LayerNorm is one kernel."""


def join_work(*parts: Work) -> Work:
    """All kernels of several."""
    return Work(
        matmuls=sum((part.matmuls for part in parts), ()),
        traffic=sum((part.traffic for part in parts), ()),
        attention=sum((part.attention for part in parts), ()),
        grouped=sum((part.grouped for part in parts), ()),
        all_to_all_bytes=sum(part.all_to_all_bytes for part in parts),
    )


def moved_in(job: Job, tokens: int) -> Callable[[float, float, int, int], Traffic]:
    """A maker of traffic: elements per token forward and backward, and kernels."""
    size = job.execution.element_bytes

    def traffic(forward: float, backward: float, kernels: int = 1, again: int = 1) -> Traffic:
        return Traffic(
            forward_bytes=forward * tokens * size,
            backward_bytes=backward * tokens * size,
            forward_kernels=kernels,
            backward_kernels=again,
        )

    return traffic


def make_matmul(job: Job, tokens: int, inputs: int, outputs: int, *, saved: bool = True) -> Matmul:
    """A product of the tokens with a weight of a block."""
    element = job.execution.element_bytes
    operand = 1 if job.execution.matmul == "fp8" else element
    gemm = Gemm(m=tokens, n=outputs, k=inputs, element_bytes=operand, output_bytes=element)
    return Matmul(forward=gemm, saved=saved)
