"""Slurm: the script is rendered and shown; submission is refused with the reason."""

from __future__ import annotations

from launcher.errors import SubmissionRefused


def refuse_submission() -> None:
    """Raise SubmissionRefused: this version renders Slurm scripts, and does not submit them."""
    raise SubmissionRefused(
        "launch=slurm [slurm-not-available]: this version does not submit to Slurm. "
        "Try --dry-run, which prints the script for sbatch."
    )
