"""What the run directory fixes for every worker: nothing is composed or planned again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from launcher.config.schema import Run
from launcher.errors import RunFailed
from launcher.plan.records import Layout, Stage, layout_from_json, stages_from_json
from launcher.plan.run_files import RunFiles
from launcher.plan.schedule_choice import plan_schedule
from launcher.plan.schedule_records import Schedule


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The frozen files of one run, read."""

    run: Run
    layout: Layout
    stages: tuple[Stage, ...]
    schedule: Schedule
    plan: dict[str, Any]
    """The whole plan.json."""
    ds_config: dict[str, Any] | None
    """What DeepSpeed is told; None under another engine."""


def read_frozen(files: RunFiles) -> Frozen:
    """Run, plan and engine configuration of a run directory; nothing is composed again.

    Raises RunFailed where a change of these files was cut off: old and new ones would be mixed.
    """
    if files.pending.exists():
        raise RunFailed(
            f"a change of the files in {files.root} was cut off; `launch resume` completes it"
        )
    plan = json.loads(files.plan.read_text())
    layout = layout_from_json(plan)
    has_deepspeed = layout.engine == "deepspeed"
    run = Run.model_validate(yaml.safe_load(files.run.read_text()))
    return Frozen(
        run=run,
        layout=layout,
        stages=stages_from_json(plan),
        schedule=plan_schedule(run, layout),
        plan=plan,
        ds_config=json.loads(files.deepspeed.read_text()) if has_deepspeed else None,
    )
