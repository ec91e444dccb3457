"""How a backward pass is split: weight gradients wait in a queue until the schedule's W action.

A linear layer's backward has two matrix products. That of the input goes on to the stage before
and is done at once; that of the weight is needed at the end of the step only. What the second one
reads is queued, per microbatch and chunk. Everything else (norms, biases, embeddings) is small and
stays in B.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightQueue:
    """Weight gradients of one stage that are still to be computed."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._open: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        """How many backward passes wait."""
        return len(self._waiting)

    @contextmanager
    def collect(self, key: Hashable) -> Iterator[None]:
        """Around a backward pass whose weight gradients are to wait under this key."""
        self._open = []
        try:
            yield
            self._waiting[key] = self._open
        finally:
            self._open = None

    def compute(self, key: Hashable) -> None:
        """Add up the weight gradients of one backward pass, where autograd would have added them.

        Each goes through its parameter's own autograd node, so hooks on gradients run as always.
        """
        weights, gradients = [], []
        for weight, x, gradient in self._waiting.pop(key):
            weights.append(weight)
            gradients.append(_weight_gradient(x, gradient))
        if weights:
            torch.autograd.backward(weights, gradients)

    def add(self, weight: Tensor, x: Tensor, gradient: Tensor) -> bool:
        """Put one product off; False where nothing is collected."""
        if self._open is None:
            return False
        self._open.append((weight, x, gradient))
        return True

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As F.linear, with a backward that can be split."""
        return _SplitLinear.apply(x, weight, bias, self)  # type: ignore[no-any-return]


class SplitLinear(nn.Module):
    """A linear layer with the parameters of another one, whose weight gradient can wait."""

    def __init__(self, linear: nn.Linear, queue: WeightQueue) -> None:
        super().__init__()
        self.weight, self.bias, self.queue = linear.weight, linear.bias, queue

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear."""
        return self.queue.linear(x, self.weight, self.bias)


def split_backward(module: nn.Module) -> WeightQueue:
    """Let all products with a weight put their weight gradients off; names stay as they are."""
    queue = WeightQueue()
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            module.set_submodule(path, SplitLinear(child, queue))
        elif hasattr(child, "product"):
            child.product = queue.linear
    return queue


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, queue: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.queue = queue
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x = gradient @ weight if needs_x else None
        of_bias = gradient.flatten(0, -2).sum(0) if needs_bias else None
        waits = needs_weight and ctx.queue.add(weight, x, gradient)
        of_weight = _weight_gradient(x, gradient) if needs_weight and not waits else None
        return of_x, of_weight, of_bias, None


@torch.no_grad()
def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    return gradient.flatten(0, -2).mT @ x.flatten(0, -2)
