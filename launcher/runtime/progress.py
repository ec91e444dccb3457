"""How far a run is: with the seed, all that data order, dropout and learning rate depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands between two steps, in any layout."""

    step: int = 0
    """Optimizer steps that were taken."""
    consumed_samples: int = 0
    """Samples that they saw: the sum of their global batch sizes, which a resume may change."""

    def after(self, samples: int) -> Progress:
        """One step later, which saw so many samples."""
        return Progress(step=self.step + 1, consumed_samples=self.consumed_samples + samples)
