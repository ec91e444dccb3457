"""The whole plan of a run: what a visitor should read first."""

from __future__ import annotations

from launcher.config.rules import check_run
from launcher.config.schema import Optimizer, Run
from launcher.errors import ConfigError
from launcher.plan.audit import find_warnings
from launcher.plan.costs import count_parameters
from launcher.plan.fill import fill_run
from launcher.plan.memory import build_shape, estimate_memory
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout, Plan, Stage
from launcher.plan.roofline import estimate_parts
from launcher.plan.schedule_choice import check_schedule_file, plan_chain, plan_schedule
from launcher.plan.stages import split_stages
from launcher.plan.step_time import estimate_step


def build_plan(run: Run) -> Plan:
    """Predict a run without running it; ConfigError with every finding where it is not legal.

    The hardware's gpu and node must be known (the command detects those of a local machine).
    """
    # 0. A schedule from a file can run, and is for this layout.
    if findings := check_schedule_file(run):
        raise ConfigError(findings)
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
    schedule = plan_schedule(run, layout)
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
        simulation=step.simulation,
        warnings=warnings,
        decisions=filled.decisions,
    )


def plan_stages(run: Run, layout: Layout) -> tuple[Stage, ...]:
    """The split of a filled run: by the time that blocks, embedding and head take."""
    assert run.hardware.gpu is not None
    shape = build_shape(run, layout)
    parts = estimate_parts(run.model, shape, layout.recompute, run.hardware.gpu, run.precision)
    return split_stages(run.model, layout.pp, parts, plan_chain(run, layout))


def _checkpoint_bytes_per_parameter(optimizer: Optimizer) -> int:
    """Weights and optimizer state, all in float32."""
    return 4 + (8 if optimizer.name == "adamw" else 4 if optimizer.momentum else 0)
