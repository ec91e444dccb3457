"""Rules on the data-parallel engine: what each of them can shard and when."""

from __future__ import annotations

from launcher.config.rule import Rule
from launcher.config.schedule_facts import splits_backward
from launcher.config.schema import Run


def _zero3_pipeline(run: Run) -> str | None:
    degrees = run.parallelism
    if degrees.engine == "deepspeed" and degrees.zero_stage == 3 and (degrees.pp or 1) > 1:
        return f"DeepSpeed cannot shard parameters over dp inside a pipeline of {degrees.pp}"
    return None


def _fsdp2_shards(run: Run) -> str | None:
    if run.parallelism.engine == "fsdp2" and run.parallelism.zero_stage == 0:
        return "fully_shard always shards optimizer state; stage 0 keeps it whole on every replica"
    return None


def _fsdp2_backward(run: Run) -> str | None:
    if run.parallelism.engine == "fsdp2" and splits_backward(run):
        return f"{run.parallelism.schedule} computes weight gradients after fully_shard is done"
    return None


ENGINE_RULES = (
    Rule(
        id="zero3-without-pipeline",
        field="parallelism.zero_stage",
        says="zero_stage=3 with engine=deepspeed needs pp=1",
        why="DeepSpeed's ZeRO-3 checks its parameter trace over all ranks of the job at the first "
        "forward; pipeline stages reach it at different times and hang (seen with 0.19.8). "
        "engine=fsdp2 has no such check.",
        broken=_zero3_pipeline,
        candidates=lambda run: (0, 1, 2),
    ),
    Rule(
        id="fsdp2-shards",
        field="parallelism.zero_stage",
        says="engine=fsdp2 needs zero_stage 1, 2 or 3",
        why="fully_shard keeps only rows of the masters and moments; plain replicas are "
        "engine=deepspeed zero_stage=0, which uses no DeepSpeed.",
        broken=_fsdp2_shards,
        candidates=lambda run: (1, 2, 3),
    ),
    Rule(
        id="fsdp2-without-split-backward",
        field="parallelism.engine",
        says="engine=fsdp2 does not take schedules with a split backward (zb_h1 to zb_2p, zb_v, "
        "dualpipev, files with W)",
        why="fully_shard reduces a block's gradients and frees its weights at the end of the "
        "block's backward; a W action after it would add to gradients that are gone.",
        broken=_fsdp2_backward,
        candidates=lambda run: ("deepspeed",),
    ),
)
