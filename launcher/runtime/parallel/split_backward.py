"""How a backward pass is split: weight gradients wait in a queue until the schedule's W action.

A linear layer's backward has two matrix products. That of the input goes on to the stage before
and is done at once; that of the weight is needed at the end of the step only. What the second one
reads is queued, per microbatch and chunk. Everything else (norms, biases, embeddings) is small and
stays in B.

Where no hook waits for gradients, a product is added to what its weight has already, with neither
a tensor of its own nor another pass over both. That also serves a backward that is not split:
outside of `collect` nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightQueue:
    """Weight gradients of one stage that are still to be computed."""

    def __init__(self) -> None:
        self.adds_in_place = False
        """Products are added to `weight.grad` past autograd: for engines without hooks there."""
        self._waiting: dict[Hashable, list[_Waiting]] = {}
        self._open: list[_Waiting] | None = None

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

    @torch.no_grad()
    def compute(self, key: Hashable) -> None:
        """Add up the weight gradients of one backward pass, where autograd would have added them.

        Each goes through its parameter's own autograd node, so hooks on gradients run as always,
        unless `adds_in_place` says that there are none.
        """
        if self.adds_in_place:
            for waiting in self._waiting.pop(key):
                waiting.add_up()
            return
        weights, gradients = [], []
        for waiting in self._waiting.pop(key):
            x = waiting.whole_input()
            for weight, gradient in waiting.pairs:
                weights.append(weight)
                gradients.append(weight_gradient(x, gradient))
        if weights:
            torch.autograd.backward(weights, gradients)

    def add(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        x: Tensor,
        make_whole: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Put products off: weights that read x, each with the gradient of its result.

        Where ranks keep pieces of x, `make_whole` puts them together when it is time. Outside of
        `collect` it is time now.
        """
        waiting = _Waiting(pairs=pairs, x=x, make_whole=make_whole)
        if self._open is not None:
            self._open.append(waiting)
            return
        assert self.adds_in_place, "the backward pass of a split layer stands in `collect`"
        waiting.add_up()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As F.linear, with a backward that leaves the weight's gradient to the queue."""
        return self._products(x, [(weight, bias)])[0]

    def project(self, x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """As `linear`, of several layers that read the same input: one node, one sum of x's."""
        return self._products(x, [(layer.weight, layer.bias) for layer in layers])  # type: ignore[misc]

    def _products(
        self, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # or there would be no backward at all
        weights = [weight for weight, _ in pairs]  # a list: autograd does not look into it
        return _SplitLinears.apply(x, weights, self, *(bias for _, bias in pairs))  # type: ignore[no-any-return]


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
        elif hasattr(child, "products"):  # cut over ranks (`parallel/products.py`)
            child.products.queue = queue
        elif hasattr(child, "product"):
            child.product = queue.linear
        elif hasattr(child, "project"):
            child.project = queue.project
    return queue


class _Waiting(NamedTuple):
    pairs: Sequence[tuple[Tensor, Tensor]]
    x: Tensor
    make_whole: Callable[[Tensor], Tensor] | None = None

    def whole_input(self) -> Tensor:
        return self.x if self.make_whole is None else self.make_whole(self.x)

    def add_up(self) -> None:
        """Add every product to its weight's gradient; the first one becomes it.

        As all here, without a graph of its own: gradients are off in a backward pass.
        """
        x_NK = self.whole_input().flatten(0, -2)
        for weight, gradient in self.pairs:
            gradient_KN = gradient.flatten(0, -2).mT
            if weight.grad is None:
                weight.grad = gradient_KN @ x_NK
            else:
                weight.grad.addmm_(gradient_KN, x_NK)


@dataclass(frozen=True)
class Hidden:
    """A weight that autograd does not see.

    If it did, hooks on its gradient would run in B without a gradient (torch 2.13). Nor may it be
    saved like an activation: recomputation would give back a copy that is no parameter.
    """

    tensor: Tensor


class _SplitLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Sequence[Tensor], queue: WeightQueue, *biases: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.weights, ctx.queue = weights, queue
        return tuple(
            F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,), (needs_x, _, _, *needs) = ctx.saved_tensors, ctx.needs_input_grad
        rows = [gradient.flatten(0, -2) for gradient in gradients]
        of_x = input_gradient(rows, ctx.weights).view(x.shape) if needs_x else None
        of_biases = [
            gradient.sum(0) if needed else None
            for gradient, needed in zip(rows, needs, strict=True)
        ]
        ctx.queue.add(list(zip(ctx.weights, rows, strict=True)), x)
        return of_x, None, None, *of_biases


def input_gradient(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Of linear layers that read the same input, added up in one buffer."""
    total = gradients[0] @ weights[0]
    flat = total.flatten(0, -2)
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        flat.addmm_(gradient.flatten(0, -2), weight)
    return total


@torch.no_grad()
def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Of a linear layer's weight, [out, in]: input and gradient of the result in."""
    return gradient.flatten(0, -2).mT @ x.flatten(0, -2)
