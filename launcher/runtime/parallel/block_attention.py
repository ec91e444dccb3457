"""Attention of some queries to some keys, and how the results for several sets of keys add up.

A softmax over all keys is put together from softmaxes over parts of them: each part comes with the
logarithm of its sum of exponents, by which parts are weighed (FlashAttention, arXiv:2205.14135,
sec. 3.1; over ranks: arXiv:2310.01889). Backward needs the weights of the whole softmax only: a
part's gradients follow from the whole result and its log-sum.
"""

# Shapes: B samples, N query heads, K key/value heads, Q queries, T keys, D width of a head.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

HIDDEN = -1e30
"""Added to scores that are not seen. Finite: a query that sees no key of a part has a log-sum near
it, so that the part weighs nothing, where infinities would make it not a number."""


class Part(NamedTuple):
    """What the queries get from some of the keys."""

    out_BNQD: Tensor
    log_sum_BNQ: Tensor
    """Of the exponents of the scores, at least in float32."""


class PartGradients(NamedTuple):
    """What a part adds to the gradients."""

    q_BNQD: Tensor
    k_BKTD: Tensor
    v_BKTD: Tensor


class Whole:
    """The result over all keys so far; parts are added one by one."""

    def __init__(self) -> None:
        self._out: Tensor | None = None
        self._log_sum: Tensor | None = None

    def add(self, part: Part, rows: slice) -> None:
        """Take in a part that these rows of the queries have seen; the first is for all rows.

        The first is written over.
        """
        if self._out is None or self._log_sum is None:
            out, log_sum = part
            wide = torch.promote_types(out.dtype, torch.float32)
            # Laid out as [B, Q, N, D]: the heads of a token lie side by side in what follows.
            self._out = out.transpose(1, 2).to(wide).contiguous().transpose(1, 2)
            self._log_sum = log_sum
            return
        out, log_sum = self._out[:, :, rows], self._log_sum[:, :, rows]
        out.lerp_(part.out_BNQD.to(out.dtype), torch.sigmoid(part.log_sum_BNQ - log_sum)[..., None])
        torch.logaddexp(log_sum, part.log_sum_BNQ, out=log_sum)

    def finish(self, dtype: torch.dtype) -> Part:
        """The attention over all keys."""
        assert self._out is not None
        assert self._log_sum is not None
        return Part(self._out.to(dtype), self._log_sum)


def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None) -> Part:
    """One part. With `is_causal` query i sees the keys up to i; a mask is added to scores."""
    if q.device.type == "cpu":
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return Part(*fused(q, k, v, 0.0, is_causal, attn_mask=mask))
    if _has_flash(q, mask):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return Part(*flash(q, k, v, 0.0, is_causal, False)[:2])
    return _attend_by_matrix(q, k, v, is_causal, mask)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, whole: Part, is_causal: bool, mask: Tensor | None
) -> PartGradients:
    """What one part adds; `grad` and `whole` are those of its queries over all keys."""
    out, log_sum = whole
    if q.device.type == "cpu":
        fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = fused(grad, q, k, v, out, log_sum, 0.0, is_causal, attn_mask=mask)
        return PartGradients(*found)
    if _has_flash(q, mask):
        flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_backward
        seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which is off
        found = flash(
            grad, q, k, v, out, log_sum.contiguous(), None, None, q.shape[2], k.shape[2],
            0.0, is_causal, seed, seed[:0],
        )  # fmt: skip
        return PartGradients(*found)
    return _attend_backward_by_matrix(grad, q, k, v, whole, is_causal, mask)


def _has_flash(q: Tensor, mask: Tensor | None) -> bool:
    """CUDA's flash kernel takes two-byte numbers, heads in eights, and no mask."""
    return mask is None and q.is_cuda and q.element_size() == 2 and q.shape[-1] % 8 == 0


def _attend_by_matrix(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None
) -> Part:
    """Any device and type; scores are written out."""
    scores = _scores(q, k, is_causal, mask)
    log_sum = scores.logsumexp(dim=-1)
    weights = (scores - log_sum.unsqueeze(-1)).exp().to(q.dtype)
    return Part(weights @ _for_each_query_head(v, q), log_sum)


def _attend_backward_by_matrix(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, whole: Part, is_causal: bool, mask: Tensor | None
) -> PartGradients:
    out, log_sum = whole
    weights = (_scores(q, k, is_causal, mask) - log_sum.unsqueeze(-1)).exp()
    delta = (grad.to(weights.dtype) * out.to(weights.dtype)).sum(-1, keepdim=True)
    of_weights = (grad @ _for_each_query_head(v, q).mT).to(weights.dtype)
    of_scores = (weights * (of_weights - delta) / math.sqrt(q.shape[-1])).to(q.dtype)
    return PartGradients(
        of_scores @ _for_each_query_head(k, q),
        _sum_query_heads(of_scores.mT @ q, k),
        _sum_query_heads(weights.to(q.dtype).mT @ grad, v),
    )


def _scores(q: Tensor, k: Tensor, is_causal: bool, mask: Tensor | None) -> Tensor:
    product = q @ _for_each_query_head(k, q).mT
    scores = product.to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores += mask
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, HIDDEN)
    return scores


def _for_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _sum_query_heads(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient.unflatten(1, (x.shape[1], -1)).sum(2)
