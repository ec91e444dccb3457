"""The files of a run directory: the only place that names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Paths inside one run directory."""

    root: Path
    """The run directory itself."""

    @property
    def run(self) -> Path:
        """Resolved configuration."""
        return self.root / "run.yaml"

    @property
    def plan(self) -> Path:
        """The plan that the workers follow."""
        return self.root / "plan.json"

    @property
    def deepspeed(self) -> Path:
        """What DeepSpeed is told; not there under another engine."""
        return self.root / "ds_config.json"

    @property
    def command(self) -> Path:
        """The exact command of a local run."""
        return self.root / "command.sh"

    @property
    def job(self) -> Path:
        """The exact script of a Slurm job."""
        return self.root / "job.sbatch"

    @property
    def logs(self) -> Path:
        """One log per rank, and the launcher's own."""
        return self.root / "logs"

    @property
    def launcher_log(self) -> Path:
        """What torchrun said."""
        return self.logs / "torchrun.log"

    def rank_log(self, rank: int) -> Path:
        """Everything that a rank wrote to its standard output and error."""
        return self.logs / f"rank_{rank}.log"

    def rank_error(self, rank: int) -> Path:
        """Why a rank ended, where it could still say so."""
        return self.logs / f"rank_{rank}.error.json"

    @property
    def checkpoints(self) -> Path:
        """Saved states."""
        return self.root / "checkpoints"

    @property
    def data(self) -> Path:
        """Token files prepared for this run."""
        return self.root / "data"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Predicted beside measured, and the outcome."""
        return self.root / "summary.json"

    @property
    def verification(self) -> Path:
        """What `launch verify` compared."""
        return self.root / "verify.json"
