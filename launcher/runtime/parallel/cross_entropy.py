"""Mean cross-entropy of logits whose vocabulary may be cut over ranks, in one float32 buffer."""

# Shapes: N tokens of the microbatch, V vocabulary rows of this rank.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.runtime.collectives import maximum_over, sum_over
from launcher.runtime.groups import Axis

IGNORED = -100
"""A label that counts nowhere."""


@dataclass(frozen=True, kw_only=True)
class VocabularyShard:
    """The rows of the vocabulary that this rank holds."""

    start: int
    """Token id of the first row."""
    num_tokens: int
    """Rows that stand for a token; rows behind them are padding."""
    axis: Axis
    """The ranks that hold the other rows."""


def cross_entropy(
    logits_NV: Tensor,
    labels_N: Tensor,
    vocabulary: VocabularyShard | None = None,
    num_labels: float | None = None,
) -> Tensor:
    """Mean loss in nats, at least in float32; destroys the logits, whose memory takes the gradient.

    With a vocabulary shard the logits are never gathered: ranks exchange a maximum and two sums
    per token (Megatron-LM, arXiv:1909.08053, sec. 3). Padding rows get no probability.
    With `num_labels` labels may be IGNORED, and it is what the sum of the others is divided by.
    """
    return _CrossEntropy.apply(logits_NV, labels_N, vocabulary, num_labels)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Writes the gradient over the logits in forward, so that backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        labels_N: Tensor,
        vocabulary: VocabularyShard | None,
        num_labels: float | None,
    ) -> Tensor:
        scale_N: Tensor | None = None
        if num_labels is not None:
            counts_N = labels_N != IGNORED
            scale_N, labels_N = counts_N / num_labels, labels_N.where(counts_N, 0)
        work_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if vocabulary is not None and vocabulary.num_tokens < work_NV.shape[1]:
            work_NV[:, vocabulary.num_tokens :] = -torch.inf
        maximum_N = work_NV.amax(dim=1)
        if vocabulary is not None:
            maximum_over(maximum_N, vocabulary.axis)
        work_NV.sub_(maximum_N.unsqueeze(1))
        index_N1, here_N1 = _local_labels(labels_N, vocabulary)
        label_logit_N = work_NV.gather(1, index_N1).squeeze(1)
        if here_N1 is not None:
            label_logit_N = label_logit_N.where(here_N1.squeeze(1), 0.0)
        total_N = work_NV.exp_().sum(dim=1)
        if vocabulary is not None:
            both = sum_over(torch.stack((label_logit_N, total_N)), vocabulary.axis)
            label_logit_N, total_N = both[0], both[1]
        losses_N = total_N.log() - label_logit_N
        loss = losses_N.mean() if scale_N is None else (losses_N * scale_N).sum()
        if ctx.needs_input_grad[0]:
            # d mean / d logits = (softmax - one_hot) / N
            scale_N1 = 1.0 / labels_N.numel() if scale_N is None else scale_N.unsqueeze(1)
            work_NV.mul_(scale_N1 / total_N.unsqueeze(1))
            step_N1 = _minus_one_hot(here_N1, index_N1, work_NV) * scale_N1
            work_NV.scatter_add_(1, index_N1, step_N1)
            # An attribute, not save_for_backward: it is neither input nor output of this function.
            ctx.gradient_NV = (
                work_NV if work_NV is logits_NV else logits_NV.detach().copy_(work_NV)
            ).detach()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        assert gradient_NV is not None, "backward through a loss twice"
        return gradient_NV.mul_(grad), None, None, None


def _local_labels(
    labels_N: Tensor, vocabulary: VocabularyShard | None
) -> tuple[Tensor, Tensor | None]:
    """Columns of the labels here, and which labels are here; None where all are."""
    if vocabulary is None:
        return labels_N.unsqueeze(1), None
    index_N = labels_N - vocabulary.start
    here_N = (index_N >= 0) & (index_N < vocabulary.num_tokens)
    return index_N.where(here_N, 0).unsqueeze(1), here_N.unsqueeze(1)


def _minus_one_hot(here_N1: Tensor | None, index_N1: Tensor, like: Tensor) -> Tensor:
    if here_N1 is None:
        return torch.full(index_N1.shape, -1.0, dtype=like.dtype, device=like.device)
    return -here_N1.to(like.dtype)
