"""From plans to jobs in Slurm's queue: what `run` and `resume` do with launch=slurm."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError, Finding
from launcher.jobs import hold_run, print_plan, render_here, require_fit, this_machine
from launcher.plan.records import Plan


def run_on_slurm(
    plans: Sequence[Plan], chosen: str | None, *, is_dry: bool, is_followed: bool
) -> int:
    """Check everything, write the run directories and submit once; several plans as one array.

    Args:
        plans: a run each.
        chosen: --run-dir.
        is_dry: only print the script.
        is_followed: stay until the end.

    """
    from launcher.render.bundle import run_name
    from launcher.submit.write import new_run_dir

    for plan in plans:
        require_fit(plan)
        print_plan(plan, sys.stderr if is_dry else sys.stdout)
    name = run_name(plans[0].run)
    root = new_run_dir(name, chosen)
    if len(plans) > 1:
        return _run_array(plans, root, this_machine(), is_dry=is_dry, is_followed=is_followed)
    (plan,) = plans
    render = partial(render_here, plan)
    bundle = render(root)
    if is_dry:
        print(bundle.texts[bundle.script], end="")
        return EXIT_DONE
    from launcher.submit.write import refuse_if_used, write_new

    refuse_if_used(root)
    require_ready([plan], [root], bundle.texts[bundle.script])
    bundle = write_new(bundle, name, chosen, render)
    with hold_run(bundle.files):
        job = submit_bundle(bundle, plan)
    return _follow(bundle.files, job, plan) if is_followed else EXIT_DONE


def require_ready(
    plans: Sequence[Plan], folders: Sequence[Path], script: str, first_step: int = 0
) -> None:
    """Refuse, before anything is written, what could not run; say what is worth knowing."""
    from launcher.submit.preflight import refuse_unready

    for plan in plans:
        if plan.run.train.init_from is not None and first_step == 0:
            from launcher.convert.init_from import require_init_from

            require_init_from(plan.run)
    for note in refuse_unready(plans, folders, script, first_step):
        print(f"note: {note}", file=sys.stderr)


def submit_bundle(bundle, plan: Plan):  # type: ignore[no-untyped-def]
    """Submit the written script of one run; the job that came of it."""
    from launcher.submit.code import record_code
    from launcher.submit.slurm import record_job, submit_script

    record_code(bundle.files)
    job = submit_script(bundle.script, plan.run.launch.follow_ups)
    record_job(bundle.files, job)
    _say_submitted(job, bundle.files.root)
    return job


def _run_array(  # type: ignore[no-untyped-def]
    plans: Sequence[Plan], root: Path, machine, *, is_dry: bool, is_followed: bool
) -> int:
    from launcher.render.bundle import render_bundle, run_name
    from launcher.render.sbatch import render_array
    from launcher.submit.code import record_code
    from launcher.submit.slurm import record_job, submit_script
    from launcher.submit.write import refuse_if_used, write_bundle, write_text

    _require_one_queue(plans)
    folders = [root / str(number) for number in range(len(plans))]
    bundles = [
        render_bundle(plan, folder, machine) for plan, folder in zip(plans, folders, strict=True)
    ]
    array = render_array(plans, root, run_name(plans[0].run), machine)
    if is_dry:
        print(array, end="")
        for bundle in bundles:
            print(f"\n# {bundle.script}\n{bundle.texts[bundle.script]}", end="")
        return EXIT_DONE
    refuse_if_used(root)
    require_ready(plans, folders, array)
    for bundle in bundles:
        write_bundle(bundle)
        record_code(bundle.files)
    script = root / "array.sbatch"
    write_text(script, array)
    job = submit_script(script)
    for task, bundle in enumerate(bundles):
        record_job(bundle.files, job, task)
    _say_submitted(job, root, len(plans))
    if not is_followed:
        return EXIT_DONE
    from launcher.submit.slurm_follow import follow_array

    try:
        follow_array([bundle.files for bundle in bundles], job)
    except KeyboardInterrupt:
        return _let_go(root)
    return EXIT_DONE


def _require_one_queue(plans: Sequence[Plan]) -> None:
    """Tasks of an array ask for the same; what differs between them is not the queue's business."""
    from launcher.render.header import header_options
    from launcher.submit.slurm import same_queue

    differing = same_queue([header_options(plan, Path("/"), "") for plan in plans])
    findings = [
        Finding(
            field="--multirun",
            rule="one-array",
            reason=f"a sweep is one job array, whose tasks have one --{key}, and here it differs",
            fix="a sweep for each",
        )
        for key in differing
    ]
    if any(plan.run.launch.follow_ups for plan in plans):
        reason = "follow-ups of single tasks cannot be submitted before the tasks"
        findings.append(
            Finding(field="launch.follow_ups", rule="one-array", reason=reason,
                    fix="launch.follow_ups=0")
        )  # fmt: skip
    if findings:
        raise ConfigError(findings)


def _say_submitted(job, root: Path, num_tasks: int = 0) -> None:  # type: ignore[no-untyped-def]
    """What the user needs to go on."""
    tasks = f", {num_tasks} tasks, each in a run directory of its own" if num_tasks else ""
    run = f"{root}/0" if num_tasks else str(root)
    print(f"\nsubmitted      job {job.job_id}{tasks}")
    if job.follow_ups:
        print(f"behind it      {', '.join(job.follow_ups)}")
    print(f"run directory  {root}")
    print(f"follow it      launch logs {run} --follow", flush=True)


def _follow(files, job, plan: Plan) -> int:  # type: ignore[no-untyped-def]
    from launcher.submit.slurm_follow import follow_job
    from launcher.submit.summary import render_summary

    try:
        follow_job(files, job, plan.run.train.steps)
    except KeyboardInterrupt:
        return _let_go(files.root)
    if files.summary.exists():
        print(render_summary(files))
    print(f"run directory  {files.root}")
    return EXIT_DONE


def _let_go(root: Path) -> int:
    print(f"\nthe job goes on; run directory {root}", file=sys.stderr)
    return EXIT_INTERRUPTED
