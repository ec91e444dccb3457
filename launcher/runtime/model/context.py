"""What a forward pass is told beside its input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ForwardContext:
    """One microbatch: its labels, and where it stands in the run (which keys its dropout)."""

    labels_BS: Tensor | None
    """Next tokens, IGNORED where there is none; needed on the last stage only."""
    step: int
    """Optimizer step, from 0."""
    first_sample: int
    """Global index of the microbatch's first sample within the run."""
    chunk: int = 0
    """Which of the stage's model chunks it goes through."""
    documents_BS: Tensor | None = None
    """Which document of its sample each token belongs to, rising; needed on every stage. None: all
    tokens of a sample see each other."""
    num_labels: float | None = None
    """What the sum of the losses is divided by: how many labels microbatches have on average, over
    the whole global batch, so that every label weighs the same. None: all labels of this one."""
