"""Whether a job that goes on is still the run that was saved: run.yaml may have been edited."""

from __future__ import annotations

from launcher.checkpoint.manifest import read_manifest
from launcher.config.data_content import content_changes
from launcher.config.resume import find_changes, refuse_changes
from launcher.config.schema import Run
from launcher.config.validate import validate_run
from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.say import say


def require_same_run(files: RunFiles, name: str, run: Run) -> None:
    """Say what differs from the checkpoint's own run; RunFailed for what it does not bear."""
    manifest = read_manifest(files.checkpoints / name)
    saved, _ = validate_run(manifest.run)
    if saved is None:
        return  # Weights from elsewhere, or a version with other keys: shapes are compared anyway.
    changes = find_changes(saved, run)
    if findings := refuse_changes(changes):
        raise RunFailed("; ".join(str(finding) for finding in findings))
    for change in (*changes, *content_changes(manifest.data, run.data)):
        if change.kind == "numerics":
            say(f"CHANGES THE NUMBERS  {change}")
