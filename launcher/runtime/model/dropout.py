"""Dropout masks as a function of seed, step, sample, layer and site: the same in every layout."""

# Shapes: B samples, S tokens, H features.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from launcher.runtime.keys import hash_key
from launcher.runtime.model.context import ForwardContext


class BlockMasks(NamedTuple):
    """What one block drops in one microbatch."""

    attention_BSH: Tensor | None
    """What stays of the attention branch; None: all."""
    mlp_BSH: Tensor | None
    """What stays of the MLP branch; None: all."""
    core_seed: Tensor | None
    """Seed of the dropout on attention probabilities, on the CPU; None: no dropout there."""


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The dropout of a run on one rank."""

    seed: int
    rate: float
    """On the embedding and both residual branches."""
    attention_rate: float
    """On attention probabilities."""
    core_index: int
    """Keys attention probabilities: ranks of tp and cp hold different heads."""
    places_S: Tensor | None
    """Which tokens of the sequence are here; None: all."""
    length: int
    """Of the whole sequence."""

    def embedding_mask(self, x_BSH: Tensor, context: ForwardContext) -> Tensor | None:
        """What stays of the embedding; None: all."""
        return self._mask(x_BSH, context, "embedding")

    def block_masks(self, x_BSH: Tensor, context: ForwardContext, layer: str) -> BlockMasks:
        """What stays in one block."""
        core_seed = None
        if self.attention_rate > 0:
            parts = (self.seed, context.step, context.first_sample, layer, "core", self.core_index)
            core_seed = torch.tensor(hash_key(*parts))
        return BlockMasks(
            attention_BSH=self._mask(x_BSH, context, f"{layer}.attention"),
            mlp_BSH=self._mask(x_BSH, context, f"{layer}.mlp"),
            core_seed=core_seed,
        )

    def _mask(self, x_BSH: Tensor, context: ForwardContext, site: str) -> Tensor | None:
        if self.rate == 0:
            return None
        mask_BSH = torch.empty(x_BSH.shape, dtype=torch.bool, device=x_BSH.device)
        generator = torch.Generator(device=x_BSH.device)
        for offset, mask_SH in enumerate(mask_BSH):
            sample = context.first_sample + offset
            generator.manual_seed(hash_key(self.seed, context.step, sample, site))
            if self.places_S is None:
                mask_SH.bernoulli_(1.0 - self.rate, generator=generator)
                continue
            # Every rank draws the whole sequence's mask and keeps its part: as one process has it.
            whole_SH = torch.empty(
                (self.length, x_BSH.shape[2]), dtype=torch.bool, device=x_BSH.device
            ).bernoulli_(1.0 - self.rate, generator=generator)
            mask_SH.copy_(whole_SH[self.places_S])
        return mask_BSH


def drop(x: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """Keep x where the mask is set, scaled to keep its mean; without a mask x itself."""
    return x if mask is None else x * mask * (1.0 / (1.0 - rate))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Default generators as if just seeded, and afterwards as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
