"""The whole plan of a run: what a visitor should read first."""

from __future__ import annotations

from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.audit import find_warnings
from launcher.plan.audit_fix import make_room
from launcher.plan.costs import count_parameters
from launcher.plan.estimate import estimate_layout
from launcher.plan.execution import saved_bytes_per_parameter
from launcher.plan.fill import fill_run
from launcher.plan.records import Plan
from launcher.plan.schedule_choice import check_schedule_file
from launcher.plan.schedule_file import write_schedule
from launcher.plan.schedule_made import is_made
from launcher.plan.schedule_records import Schedule


def build_plan(run: Run) -> Plan:
    """Predict a run without running it; ConfigError with every finding where it is not legal.

    The hardware's gpu and node must be known (the command detects those of a local machine).
    """
    # 0. A schedule from a file can run, and is for this layout.
    if findings := check_schedule_file(run):
        raise ConfigError(findings)
    # 1. What the user left open: layout, batch, sequence.
    asked, filled = run, fill_run(run)
    run, layout = filled.run, filled.layout
    # 2. The filled run obeys every rule.
    if findings := check_run(run):
        raise ConfigError(findings)
    # 3. Blocks of each stage; the schedule that will run, simulated; memory along it.
    found = estimate_layout(run, layout)
    if is_made(layout.schedule):  # Every rank reads this order: none makes its own.
        assert found.schedule is not None
        run = _with_schedule(run, found.schedule)
    # 4. What is legal, but probably not meant.
    warnings = find_warnings(run, layout, found.stages, found.memory, found.step)
    parameters = count_parameters(run.model)
    return Plan(
        run=run,
        layout=layout,
        stages=found.stages,
        memory=found.memory,
        time=found.step.time,
        communication=found.step.communication,
        parameters=parameters,
        checkpoint_bytes=parameters * saved_bytes_per_parameter(run.optimizer),
        simulation=found.step.simulation,
        warnings=make_room(asked, run, warnings, found.step.time.tokens_per_s),
        decisions=filled.decisions,
    )


def _with_schedule(run: Run, schedule: Schedule) -> Run:
    lines = tuple(write_schedule(schedule).splitlines())
    degrees = run.parallelism.model_copy(update={"schedule_lines": lines})
    return run.model_copy(update={"parallelism": degrees})
