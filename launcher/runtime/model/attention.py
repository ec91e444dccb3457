"""Causal self-attention with grouped key/value heads, rotary positions and sliding windows."""

# Shapes: B samples, S tokens, H hidden, N heads, D width of a head, R = D/2 rotary pairs.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.config.schema import Model, RopeScaling
from launcher.runtime.model.dropout import seeded
from launcher.runtime.outside_graphs import outside_graphs
from launcher.runtime.parallel.sequence_cut import SequenceCut


class AttentionTables:
    """Constants of all attention layers of a stage, computed once and shared."""

    def __init__(
        self,
        model: Model,
        sequence_length: int,
        device: torch.device,
        dtype: torch.dtype,
        cut: SequenceCut | None = None,
    ) -> None:
        self.cos_S1R: Tensor | None = None
        self.sin_S1R: Tensor | None = None
        self.mask_SS: Tensor | None = None
        """Added to scores; None: plain causal, which needs no mask."""
        if model.position == "rope":
            angles_S1R = _rope_angles(model, sequence_length).unsqueeze(1)
            self.cos_S1R = angles_S1R.cos().to(device=device, dtype=dtype)
            self.sin_S1R = angles_S1R.sin().to(device=device, dtype=dtype)
        self.places_s = None if cut is None else cut.places_s
        """Where the rank's tokens stand, where it has not all of them."""
        has_window = model.sliding_window is not None and model.sliding_window < sequence_length
        if has_window and (cut is None or cut.is_gathered):
            self.mask_SS = _window_mask(sequence_length, model.sliding_window or 0, device, dtype)


class Packed(NamedTuple):
    """Keeps the documents of a microbatch apart."""

    positions_BS: Tensor
    """Of every token of this rank within its document."""
    mask_B1SS: Tensor | None
    """Added to scores; None where keys of other ranks come in parts, each with its own mask."""
    documents_BS: Tensor
    """Of every token of the whole sequence."""


Mix = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "Packed | None"], Tensor]
"""Queries [B, S, N, D], keys, values, seed of the dropout and documents in, mixed values out."""


class AttentionCore(nn.Module):
    """What happens between the projections; it has no parameters."""

    cos_S1R: Tensor | None
    sin_S1R: Tensor | None
    mask_SS: Tensor | None

    def __init__(self, model: Model, tables: AttentionTables) -> None:
        super().__init__()
        self.head_size, self.dropout = model.head_size, model.attention_dropout
        self.register_buffer("cos_S1R", tables.cos_S1R, persistent=False)
        self.register_buffer("sin_S1R", tables.sin_S1R, persistent=False)
        self.register_buffer("mask_SS", tables.mask_SS, persistent=False)
        self.places_s = tables.places_s
        self.mix: Mix = self.mix_here
        """How queries meet keys; `parallel/context.py` puts other ways in its place."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, packed: Packed | None = None
    ) -> Tensor:
        """Projections [B, S, heads x D] in, mixed values of the query heads out."""
        shape = (*q.shape[:2], -1, self.head_size)
        q_BSND, k_BSND, v_BSND = q.view(shape), k.view(shape), v.view(shape)
        if self.cos_S1R is not None:
            cos, sin = self._angles(q_BSND.shape[1], packed)
            q_BSND, k_BSND = _rotate(q_BSND, cos, sin), _rotate(k_BSND, cos, sin)
        return self.mix(q_BSND, k_BSND, v_BSND, seed, packed).flatten(2)

    def mix_here(
        self, q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, packed: Packed | None
    ) -> Tensor:
        """See `Mix`; all keys are on this rank."""
        q_BNSD, k_BNSD, v_BNSD = (x.transpose(1, 2) for x in (q, k, v))
        mask = self._mask(q_BNSD.shape[2], packed)
        if seed is None:
            out_BNSD = self._attend(q_BNSD, k_BNSD, v_BNSD, mask, 0.0)
        else:
            out_BNSD = self._attend_with_dropout(q_BNSD, k_BNSD, v_BNSD, mask, seed)
        return out_BNSD.transpose(1, 2)

    def _angles(self, length: int, packed: Packed | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position, [S, 1, R], or of those of every sample."""
        here: Any = slice(length) if self.places_s is None else self.places_s
        if packed is not None:
            here = packed.positions_BS
        return self.cos_S1R[here], self.sin_S1R[here]  # type: ignore[index]

    def _mask(self, length: int, packed: Packed | None) -> Tensor | None:
        if packed is not None:
            return packed.mask_B1SS
        return None if self.mask_SS is None else self.mask_SS[:length, :length]

    def _attend(
        self, q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        is_grouped = q_BNSD.shape[1] != k_BNSD.shape[1]
        if is_grouped and q_BNSD.is_cuda and q_BNSD.element_size() > 2:
            # CUDA's only fused kernel for these types (memory-efficient) knows no groups.
            repeats = q_BNSD.shape[1] // k_BNSD.shape[1]
            k_BNSD, v_BNSD = (x.repeat_interleave(repeats, dim=1) for x in (k_BNSD, v_BNSD))
            is_grouped = False
        return F.scaled_dot_product_attention(
            q_BNSD, k_BNSD, v_BNSD, attn_mask=mask, is_causal=mask is None, dropout_p=dropout,
            enable_gqa=is_grouped,
        )  # fmt: skip

    @outside_graphs
    def _attend_with_dropout(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, seed: Tensor
    ) -> Tensor:
        """The fused kernels take no generator: seed the default one, so recomputing agrees."""
        with seeded(int(seed), q.device):
            return self._attend(q, k, v, mask, self.dropout)


Projection = Callable[[Tensor, Sequence[nn.Module]], tuple[Tensor, ...]]
"""The outputs of several layers that read the same input."""


def project_each(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """One layer after the other."""
    return tuple(layer(x) for layer in layers)


class Attention(nn.Module):
    """Projections around the core; the number of heads follows from the weights."""

    def __init__(self, model: Model, tables: AttentionTables, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, size = model.hidden_size, model.head_size

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=model.bias, device="meta", dtype=dtype)

        self.q_proj = linear(hidden, model.num_heads * size)
        self.k_proj = linear(hidden, model.kv_heads * size)
        self.v_proj = linear(hidden, model.kv_heads * size)
        self.core = AttentionCore(model, tables)
        self.out_proj = linear(model.num_heads * size, hidden)
        self.project: Projection = project_each
        """How the three are made; `parallel/tensor.py` puts another way in its place."""

    def forward(
        self, x_BSH: Tensor, core_seed: Tensor | None, packed: Packed | None = None
    ) -> Tensor:
        """hidden_BSH in and out."""
        q, k, v = self.project(x_BSH, (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(self.core(q, k, v, core_seed, packed))  # type: ignore[no-any-return]


def pack_documents(
    documents_BS: Tensor, window: int | None, dtype: torch.dtype, cut: SequenceCut | None = None
) -> Packed:
    """Positions that start again in every document, and a mask that ends at its borders."""
    length = documents_BS.shape[1]
    places_S = torch.arange(length, device=documents_BS.device)
    is_first_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    is_first_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    starts_BS = torch.where(is_first_BS, places_S, 0).cummax(dim=1).values
    positions_BS = places_S - starts_BS
    if cut is not None:
        positions_BS = cut.take(positions_BS)
    mask_B1SS = None
    if cut is None or cut.is_gathered:
        mask_B1SS = _document_mask(documents_BS, window, dtype)
    return Packed(positions_BS=positions_BS, mask_B1SS=mask_B1SS, documents_BS=documents_BS)


def _document_mask(documents_BS: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a token may see another of its document, -inf elsewhere."""
    length = documents_BS.shape[1]
    places_S = torch.arange(length, device=documents_BS.device)
    back_SS = places_S.unsqueeze(1) - places_S
    is_seen_SS = (back_SS >= 0) & (back_SS < (window or length))
    is_seen_BSS = is_seen_SS & (documents_BS.unsqueeze(2) == documents_BS.unsqueeze(1))
    mask_BSS = torch.zeros(is_seen_BSS.shape, dtype=dtype, device=documents_BS.device)
    return mask_BSS.masked_fill_(~is_seen_BSS, -torch.inf).unsqueeze(1)


def _rotate(x_BSND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; feature i is paired with feature i + D/2."""
    first, second = x_BSND.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rope_angles(model: Model, sequence_length: int) -> Tensor:
    """Angle of every position and pair, [S, R] in float64 (RoFormer, arXiv:2104.09864)."""
    size = model.head_size
    exponents_R = torch.arange(0, size, 2, dtype=torch.float64) / size
    frequencies_R = model.rope_theta**-exponents_R
    if model.rope_scaling is not None:
        frequencies_R = _stretch(frequencies_R, model.rope_scaling)
    return torch.outer(torch.arange(sequence_length, dtype=torch.float64), frequencies_R)


def _stretch(frequencies_R: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: slow rotations stretched by `factor`, fast ones kept, a ramp in between.

    The ramp is linear in the number of turns that a pair makes over the original length
    (the reference model's `apply_scaling`; arXiv:2407.21783 names the method).
    """
    turns_R = scaling.original_max_position * frequencies_R / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept_R = ((turns_R - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return frequencies_R * kept_R + frequencies_R / scaling.factor * (1.0 - kept_R)


def _window_mask(length: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """0 where token i may see token j (i - window < j <= i), -inf elsewhere."""
    hidden = torch.full((length, length), -torch.inf, device=device, dtype=dtype)
    return hidden.triu(1) + hidden.tril(-window)
