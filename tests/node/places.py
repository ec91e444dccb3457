"""A run directory and a place in a job of it, without Slurm."""

from __future__ import annotations

import json
import time
from pathlib import Path

from launcher.node.place import Place
from launcher.plan.run_files import RunFiles
from tests.submit.cases import bundled, planned

SUBMITTED_AT = 1_000_000.0


def make_files(root: Path, **launch: object) -> RunFiles:
    """What `launch` has written when job 7 of Slurm starts."""
    steps = {"steps": 100, "micro_batch_size": 1, "num_microbatches": 2}
    bundle = bundled(root, planned(train=steps, launch={"name": "slurm", **launch}))
    for folder in (root, bundle.files.logs, bundle.files.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    for path, text in bundle.texts.items():
        path.write_text(text)
    record = {"kind": "slurm", "job_id": "7", "submitted_at": SUBMITTED_AT, "follow_up": None}
    bundle.files.submitted.write_text(json.dumps(record))
    return bundle.files


def make_place(files: RunFiles, restart: int = 0, index: int = 0, job: str = "7") -> Place:
    node = f"n{index + 1}"
    return Place(
        files=files, job_id=job, restart=restart, node=node, index=index, nodelist="n[1-2]"
    )


def add_start(
    files: RunFiles, restart: int = 0, job: str = "7", end: object = None, **nodes: object
) -> Path:
    """The folder of a start as it is after `start`, and with `end` after its end."""
    folder = files.start(job, restart).root
    folder.mkdir(parents=True)
    record = {"nodes": ["n1", "n2"], "started_at": SUBMITTED_AT + 100 * (restart + 1),
              "first_step": 0, "ends_at": None}  # fmt: skip
    (folder / "nodes.json").write_text(json.dumps(record | nodes))
    if end is not None:
        (folder / "end.json").write_text(json.dumps(end))
    return folder


def add_steps(files: RunFiles, count: int) -> None:
    """metrics.jsonl after so many steps."""
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(count)]
    files.metrics.write_text("\n".join([*lines, ""]))


def add_checkpoint(files: RunFiles, step: int, monkeypatch) -> None:
    """As far as this program looks at one: its step."""
    monkeypatch.setattr("launcher.node.start.saved_step", lambda files: step)
    monkeypatch.setattr("launcher.node.end.saved_step", lambda files: step)
    monkeypatch.setattr("launcher.node.history.saved_step", lambda files: step)


def add_error(files: RunFiles, error: str, rank: int = 1, node: str = "n2") -> None:
    """What a rank leaves behind before it ends."""
    document = {"rank": rank, "node": node, "error": error, "time": time.time(), "is_echo": False}
    files.rank_error(rank).write_text(json.dumps(document))
