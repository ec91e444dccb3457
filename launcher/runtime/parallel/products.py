"""Matrix products with cut weights, forward and backward, and what goes between the ranks.

A column-parallel group (projections that read the same input) makes its input whole, a row-parallel
product sums its results up; backward it is the other way round. What a collective can be hidden
behind is in the same function: the input's gradient is summed while the weights' gradients are
computed, a gathered input arrives while the input's gradient is computed, a row-parallel result is
summed column by column chunk while the next chunk is computed.
"""

# Shapes: B samples, S tokens, F features; `rest`: as activations rest (runtime/collectives.py).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from launcher.plan.execution import ROW_CHUNKS
from launcher.runtime.collectives import Exchange, Pending
from launcher.runtime.outside_graphs import outside_graphs
from launcher.runtime.parallel.split_backward import (
    Hidden,
    WeightQueue,
    input_gradient,
    weight_gradient,
)


@dataclass(kw_only=True)
class Products:
    """How the cut products of a stage are made."""

    exchange: Exchange
    overlaps: bool
    """Collectives run beside products wherever they can."""
    queue: WeightQueue | None = None
    """Where weight gradients wait; None: they never do."""

    @outside_graphs
    def columns(self, x_rest: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """The outputs of layers that read the same input; each has its columns only."""
        pairs = [_operands(layer) for layer in layers]
        # What is no parameter (a copy of a shared kv head) has a backward of its own: it is seen.
        weights = [self._hide(weight) if weight.is_leaf else weight for weight, _ in pairs]
        x_rest = self._with_backward(x_rest)
        return _Columns.apply(x_rest, self, *weights, *(bias for _, bias in pairs))  # type: ignore[no-any-return, no-untyped-call]

    @outside_graphs
    def column(self, x_rest: Tensor, weight: Tensor) -> Tensor:
        """One product without a bias."""
        x_rest = self._with_backward(x_rest)
        return _Columns.apply(x_rest, self, self._hide(weight), None)[0]  # type: ignore[no-any-return, no-untyped-call]

    @outside_graphs
    def row(self, x: Tensor, weight: Tensor) -> Tensor:
        """Cut features in, their product at rest out."""
        return _Row.apply(self._with_backward(x), self._hide(weight), self)  # type: ignore[no-any-return, no-untyped-call]

    def settle(self, pending: Pending) -> Pending:
        """Without overlap, wait where the collective was started."""
        if not self.overlaps:
            pending.wait()
        return pending

    def _hide(self, weight: Tensor) -> Tensor | Hidden:
        return weight if self.queue is None else Hidden(weight)

    def _with_backward(self, x: Tensor) -> Tensor:
        if self.queue is not None and torch.is_grad_enabled() and not x.requires_grad:
            return x.detach().requires_grad_()  # or hidden weights would get no gradient at all
        return x


def _operands(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    shared = getattr(layer, "operands", None)
    return shared() if shared is not None else (layer.weight, layer.bias)  # type: ignore[return-value]


class _Columns(torch.autograd.Function):
    """Several linear layers with one input; keeps the input at rest, and makes it whole again."""

    @staticmethod
    def forward(ctx: Any, x_rest: Tensor, products: Products, *operands: Any) -> Any:
        count = len(operands) // 2
        weights, biases = operands[:count], operands[count:]
        ctx.products, ctx.count = products, count
        ctx.hidden = [w if isinstance(w, Hidden) else None for w in weights]
        ctx.save_for_backward(x_rest, *(None if isinstance(w, Hidden) else w for w in weights))
        x = products.exchange.start_whole(x_rest).wait()
        return tuple(
            F.linear(x, weight.tensor if isinstance(weight, Hidden) else weight, bias)
            for weight, bias in zip(weights, biases, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        products, count = ctx.products, ctx.count
        x_rest, *visible = ctx.saved_tensors
        needs_x, _, *needs = ctx.needs_input_grad
        weights = [
            weight if hidden is None else hidden.tensor
            for weight, hidden in zip(visible, ctx.hidden, strict=True)
        ]
        whole = summed = None
        if any(needs[:count]):
            whole = products.settle(products.exchange.start_whole(x_rest))
        if needs_x:
            of_x = input_gradient(gradients, weights)
            summed = products.settle(products.exchange.start_sum(of_x))
        of_weights = [
            weight_gradient(whole.wait(), gradient) if needed else None
            for gradient, needed in zip(gradients, needs[:count], strict=True)
        ]
        later = [(h.tensor, g) for h, g in zip(ctx.hidden, gradients, strict=True) if h is not None]
        if later:
            products.queue.add(later, x_rest, lambda x: products.exchange.start_whole(x).wait())
        of_biases = [
            gradient.flatten(0, -2).sum(0) if needed else None
            for gradient, needed in zip(gradients, needs[count:], strict=True)
        ]
        return (None if summed is None else summed.wait(), None, *of_weights, *of_biases)


class _Row(torch.autograd.Function):
    """A linear layer that is cut along its inputs, without its bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, products: Products) -> Tensor:
        ctx.products = products
        ctx.hidden = weight if isinstance(weight, Hidden) else None
        tensor = weight.tensor if isinstance(weight, Hidden) else weight
        ctx.save_for_backward(x, weight if ctx.hidden is None else None)
        exchange = products.exchange
        if not products.overlaps:
            return exchange.start_sum(F.linear(x, tensor)).wait()
        chunks = [exchange.start_sum(F.linear(x, part)) for part in tensor.chunk(ROW_CHUNKS)]
        return torch.cat([chunk.wait() for chunk in chunks], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_rest: Tensor) -> Any:
        products, (x, visible) = ctx.products, ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        gradient = products.exchange.start_whole(gradient_rest).wait()
        weight = visible if ctx.hidden is None else ctx.hidden.tensor
        of_x = gradient @ weight if needs_x else None
        of_weight = weight_gradient(x, gradient) if needs_weight else None
        if ctx.hidden is not None:
            products.queue.add([(weight, gradient)], x)
        return of_x, of_weight, None
