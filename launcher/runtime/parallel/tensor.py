"""How a plain stage becomes tensor-parallel: a table of module names and what is done to each.

Which dimension of which parameter is cut stands in plan/costs.py (`ParameterSpec.tp_dim`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

from launcher.plan.costs import ParameterSpec
from launcher.runtime.collectives import (
    Copies,
    Exchange,
    SequencePieces,
    copy_to_ranks,
    sum_to_rest,
)
from launcher.runtime.groups import Axis, Groups
from launcher.runtime.parallel.cross_entropy import VocabularyShard
from launcher.runtime.parallel.products import Products
from launcher.runtime.parallel.shard import cut


def apply_tensor_parallel(
    module: nn.Module,
    specs: dict[str, ParameterSpec],
    groups: Groups,
    *,
    sequence_parallel: bool = False,
    overlaps: bool = False,
) -> None:
    """Change a stage on the meta device so that it computes with cut parameters.

    The parameters themselves are cut when they get their values (`model/initial.py`). With
    `sequence_parallel` all that lies between cut products has a piece of the sequence per rank;
    with `overlaps` collectives run beside products.
    """
    if groups.tp.size == 1:
        return
    exchange = SequencePieces(groups.tp) if sequence_parallel else Copies(groups.tp)
    products = Products(exchange=exchange, overlaps=overlaps)
    for path, child in list(module.named_modules()):
        for pattern, change in TENSOR_PARALLEL:
            if fnmatchcase(path, pattern):
                change(
                    Target(
                        root=module, path=path, child=child, specs=specs, groups=groups,
                        products=products,
                    )
                )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """A module that the table names, and what a change needs to know."""

    root: nn.Module
    path: str
    child: nn.Module
    specs: dict[str, ParameterSpec]
    groups: Groups
    products: Products

    def replace(self, child: nn.Module) -> None:
        """Put another module in its place."""
        self.root.set_submodule(self.path, child)


def _share_input(target: Target) -> None:
    """All projections that read the input are one group: one collective per pass."""
    target.child.products = target.products  # type: ignore[assignment]
    target.child.project = target.products.columns  # type: ignore[assignment]


def _split_rows(target: Target) -> None:
    assert isinstance(target.child, nn.Linear)
    target.replace(RowLinear(target.child, target.products))


def _share_kv(target: Target) -> None:
    if target.groups.tp.size > target.specs[f"{target.path}.weight"].num_units:
        assert isinstance(target.child, nn.Linear)
        assert target.groups.kv is not None, "build_groups was not told the number of kv heads"
        target.replace(SharedLinear(target.child, target.groups.kv))


def _split_tokens(target: Target) -> None:
    vocabulary = _vocabulary_shard(target.specs[f"{target.path}.weight"], target.groups.tp)
    assert isinstance(target.child, nn.Embedding)
    target.replace(VocabularyEmbedding(target.child, vocabulary, target.products.exchange))


def _split_positions(target: Target) -> None:
    """Each rank adds the positions of its piece of the sequence."""
    if isinstance(target.products.exchange, SequencePieces):
        target.child.piece = target.groups.tp.index  # type: ignore[assignment]


def _split_head(target: Target) -> None:
    spec = target.specs[f"{target.path}.weight"]
    target.child.vocabulary = _vocabulary_shard(spec, target.groups.tp)  # type: ignore[assignment]
    target.child.products = target.products  # type: ignore[assignment]
    target.child.product = target.products.column  # type: ignore[assignment]


TENSOR_PARALLEL: tuple[tuple[str, Callable[[Target], None]], ...] = (
    ("embedding.tokens", _split_tokens),
    ("embedding.positions", _split_positions),
    ("layers.*.attention", _share_input),
    ("layers.*.attention.[kv]_proj", _share_kv),
    ("layers.*.attention.out_proj", _split_rows),
    ("layers.*.mlp", _share_input),
    ("layers.*.mlp.down_proj", _split_rows),
    ("head", _split_head),
)
"""Module name and change. Column-parallel projections need none: their outputs are just fewer."""


class RowLinear(nn.Module):
    """A linear layer cut along its inputs: partial sums are reduced, the bias is added once."""

    def __init__(self, linear: nn.Linear, products: Products) -> None:
        super().__init__()
        self.weight, self.bias, self.products = linear.weight, linear.bias, products

    def forward(self, x: Tensor) -> Tensor:
        """Cut features in, whole features out, at rest."""
        out = self.products.row(x, self.weight)
        return out if self.bias is None else out + self.bias


class SharedLinear(nn.Module):
    """A projection to one kv head that several ranks hold: each adds its queries' gradient."""

    def __init__(self, linear: nn.Linear, axis: Axis) -> None:
        super().__init__()
        self.weight, self.bias, self.axis = linear.weight, linear.bias, axis

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, for the group of projections to compute with."""
        bias = None if self.bias is None else copy_to_ranks(self.bias, self.axis)
        return copy_to_ranks(self.weight, self.axis), bias


class VocabularyEmbedding(nn.Module):
    """A token table cut along its rows: each rank looks up its own, the sum has them all."""

    def __init__(
        self, embedding: nn.Embedding, vocabulary: VocabularyShard, exchange: Exchange
    ) -> None:
        super().__init__()
        self.weight, self.vocabulary, self.exchange = embedding.weight, vocabulary, exchange

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Token ids in, hidden_BSH out, at rest."""
        row_BS = tokens_BS - self.vocabulary.start
        elsewhere_BS = (row_BS < 0) | (row_BS >= self.vocabulary.num_tokens)
        hidden_BSH = F.embedding(row_BS.masked_fill_(elsewhere_BS, 0), self.weight)
        hidden_BSH = hidden_BSH.masked_fill_(elsewhere_BS.unsqueeze(-1), 0.0)
        return sum_to_rest(hidden_BSH, self.exchange)


def _vocabulary_shard(spec: ParameterSpec, axis: Axis) -> VocabularyShard:
    shard = cut(spec, axis.index, axis.size)
    return VocabularyShard(start=shard.start, num_tokens=shard.stop - shard.start, axis=axis)
