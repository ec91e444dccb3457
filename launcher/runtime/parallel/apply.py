"""What is done to a stage's blocks after they have their weights: recomputation, compilation."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def apply_recompute(module: nn.Module, mode: str) -> None:
    """Keep fewer activations: `selective` drops the attention core's, `full` whole blocks'.

    Dropout masks come from keys, not from generator state, so no state is saved and restored.
    """
    assert mode in ("none", "selective", "full"), mode
    if mode == "full":
        module.run_block = partial(_recompute, module.run_block)  # type: ignore[assignment]
    if mode == "selective":
        for block in module.layers.values():  # type: ignore[operator]
            block.attention.core = RecomputedCore(block.attention.core)


def apply_compile(module: nn.Module, backend: str = "inductor") -> None:
    """Compile every block by itself; blocks share the compiled code.

    Collectives stay outside of the graphs (`runtime/collectives.py` turns the compiler off there).
    """
    for block in module.layers.values():  # type: ignore[operator]
        block.compile(dynamic=False, backend=backend)


class RecomputedCore(nn.Module):
    """An attention core (without parameters) that is run again in backward."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, *args: Tensor | None) -> Tensor:
        """Same arguments and result as the core."""
        return _recompute(self.core, *args)


def _recompute(function: Any, *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
