"""The whole plan of a run: what a visitor should read first."""

from __future__ import annotations

from launcher.config.rules import check_run
from launcher.config.schema import Optimizer, Run
from launcher.errors import ConfigError
from launcher.plan.audit import find_warnings
from launcher.plan.costs import count_parameters
from launcher.plan.execution import runtime_job
from launcher.plan.fill import fill_run
from launcher.plan.memory import estimate_memory
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout, Plan, Stage
from launcher.plan.schedule import build_schedule
from launcher.plan.stage_time import estimate_parts
from launcher.plan.stages import split_stages
from launcher.plan.step_time import estimate_step


def build_plan(run: Run) -> Plan:
    """Predict a run without running it; ConfigError with every finding where it is not legal.

    The hardware's gpu and node must be known (the command detects those of a local machine).
    """
    # 1. What the user left open: layout, batch, sequence.
    filled = fill_run(run)
    run, layout = filled.run, filled.layout
    # 2. The filled run obeys every rule.
    if findings := check_run(run):
        raise ConfigError(findings)
    # 3. Where ranks sit, and which blocks each stage holds.
    mesh = build_mesh(layout)
    stages = plan_stages(run, layout)
    # 4. The schedule that will run, simulated: step time and microbatches in flight.
    schedule = build_schedule(layout.schedule, layout.pp, layout.num_microbatches)
    step = estimate_step(run, layout, stages, schedule, mesh)
    # 5. Memory of every stage, from that same simulation.
    memory = estimate_memory(run, layout, stages, step.simulation.peak_in_flight)
    # 6. What is legal, but probably not meant.
    warnings = find_warnings(run, layout, stages, memory, step)
    parameters = count_parameters(run.model)
    return Plan(
        run=run,
        layout=layout,
        stages=stages,
        memory=memory,
        time=step.time,
        communication=step.communication,
        parameters=parameters,
        checkpoint_bytes=parameters * _checkpoint_bytes_per_parameter(run.optimizer),
        warnings=warnings,
        decisions=filled.decisions,
    )


def plan_stages(run: Run, layout: Layout) -> tuple[Stage, ...]:
    """The split of a filled run: by the time that blocks, embedding and head take."""
    parts = estimate_parts(runtime_job(run, layout))
    return split_stages(
        run.model, layout.pp, block_s=parts.block_s, first_s=parts.embedding_s, last_s=parts.head_s
    )


def _checkpoint_bytes_per_parameter(optimizer: Optimizer) -> int:
    """Weights and optimizer state, all in float32."""
    return 4 + (8 if optimizer.name == "adamw" else 4 if optimizer.momentum else 0)
