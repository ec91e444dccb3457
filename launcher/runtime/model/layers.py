"""The parts of a decoder beside attention: embedding, block, MLP and head with its loss."""

# Shapes: B samples, S tokens, H hidden, N = B x S tokens, V vocabulary.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.config.schema import Model
from launcher.runtime.model.attention import (
    Attention,
    AttentionTables,
    Packed,
    Projection,
    project_each,
)
from launcher.runtime.model.dropout import BlockMasks, drop
from launcher.runtime.parallel.cross_entropy import VocabularyShard, cross_entropy

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
}


def build_norm(model: Model, dtype: torch.dtype) -> nn.Module:
    """The model's norm; torch computes its statistics in float32 also for bf16 input."""
    kind = nn.LayerNorm if model.norm == "layernorm" else nn.RMSNorm
    return kind(model.hidden_size, eps=model.norm_eps, device="meta", dtype=dtype)


class Embedding(nn.Module):
    """Token table plus, where positions are learned, their table."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        # From a table, for its own initialization would import the compiler, for a second.
        table_VH = torch.empty(model.vocab_size, model.hidden_size, device="meta", dtype=dtype)
        self.tokens = nn.Embedding.from_pretrained(table_VH, freeze=False)
        if model.position == "learned":
            self.positions = PositionTable(model, dtype)

    def forward(self, tokens_BS: Tensor, positions_BS: Tensor | None = None) -> Tensor:
        """Token ids in, hidden_BSH out; without positions the first token is the sequence's."""
        hidden_BSH = self.tokens(tokens_BS)
        if hasattr(self, "positions"):
            hidden_BSH = hidden_BSH + self.positions(hidden_BSH.shape[1], positions_BS)
        return hidden_BSH  # type: ignore[no-any-return]


class PositionTable(nn.Module):
    """A vector per position."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        shape = (model.max_sequence_length, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device="meta", dtype=dtype))
        self.piece = 0
        """Which piece of the sequence is here; the first, where it is not cut."""

    def forward(self, length: int, positions_BS: Tensor | None = None) -> Tensor:
        """The positions of this piece of `length` tokens, [S, H].

        Those that are given for the whole sequence instead, [B, S, H].
        """
        piece = slice(self.piece * length, (self.piece + 1) * length)
        return self.weight[piece if positions_BS is None else positions_BS[:, piece]]


class Mlp(nn.Module):
    """Up, activation, down; with a gate beside up where the activation has one."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, ffn, bias = model.hidden_size, model.ffn_hidden_size, model.bias
        self.is_gated = model.is_gated
        self.activation = ACTIVATIONS[model.activation]
        if model.is_gated:
            self.gate_proj = nn.Linear(hidden, ffn, bias=bias, device="meta", dtype=dtype)
        self.up_proj = nn.Linear(hidden, ffn, bias=bias, device="meta", dtype=dtype)
        self.down_proj = nn.Linear(ffn, hidden, bias=bias, device="meta", dtype=dtype)
        self.project: Projection = project_each
        """How gate and up are made; `parallel/tensor.py` puts another way in its place."""

    def forward(self, x_BSH: Tensor) -> Tensor:
        """hidden_BSH in and out."""
        if self.is_gated:
            gate, up = self.project(x_BSH, (self.gate_proj, self.up_proj))
            inner = self.activation(gate) * up
        else:
            inner = self.activation(*self.project(x_BSH, (self.up_proj,)))
        return self.down_proj(inner)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Norm, attention, norm, MLP, each branch added to the residual stream."""

    def __init__(self, model: Model, tables: AttentionTables, dtype: torch.dtype) -> None:
        super().__init__()
        self.dropout = model.dropout
        self.attention_norm = build_norm(model, dtype)
        self.attention = Attention(model, tables, dtype)
        self.mlp_norm = build_norm(model, dtype)
        self.mlp = Mlp(model, dtype)

    def forward(
        self, x_BSH: Tensor, masks: BlockMasks | None, packed: Packed | None = None
    ) -> Tensor:
        """hidden_BSH in and out; without masks nothing is dropped."""
        attention_mask, mlp_mask, core_seed = (None, None, None) if masks is None else masks
        branch = self.attention(self.attention_norm(x_BSH), core_seed, packed)
        x_BSH = x_BSH + drop(branch, attention_mask, self.dropout)
        branch = self.mlp(self.mlp_norm(x_BSH))
        return x_BSH + drop(branch, mlp_mask, self.dropout)


class Head(nn.Module):
    """Logits and their loss in one step, so that logits live only here."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        shape = (model.vocab_size, model.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device="meta", dtype=dtype))
        self.vocabulary: VocabularyShard | None = None
        """Which rows are here; None: all."""
        self.product: Callable[[Tensor, Tensor], Tensor] = F.linear
        """How logits are made; `parallel/` puts other ways in its place."""

    def forward(self, x_BSH: Tensor, labels_BS: Tensor, num_labels: float | None = None) -> Tensor:
        """hidden_BSH in, mean loss in nats per token out; see `ForwardContext.num_labels`."""
        logits_NV = self.product(x_BSH, self.weight).flatten(0, 1)
        return cross_entropy(logits_NV, labels_BS.flatten(), self.vocabulary, num_labels)
