"""What a forward pass is told beside its input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ForwardContext:
    """One microbatch: its labels, and where it stands in the run (which keys its dropout)."""

    labels_BS: Tensor | None
    """Next tokens; needed on the last stage only."""
    step: int
    """Optimizer step, from 0."""
    first_sample: int
    """Global index of the microbatch's first sample within the run."""
    chunk: int = 0
    """Which of the stage's model chunks it goes through."""
