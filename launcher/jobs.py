"""From a plan to a job that runs and is followed: what `run` and `resume` share."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from launcher.config.assets import PACKAGE, slurm_templates
from launcher.errors import (
    ConfigError,
    DoesNotFit,
    Finding,
    LaunchError,
    SubmissionRefused,
)
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles

_OTHER_JOB_ENDS_S = 60.0
"""A job whose launcher was killed saves once more before it ends."""


def print_plan(answer: Plan, stream: TextIO | None = None) -> None:
    """The report of a plan."""
    from launcher.plan.report import render_report

    print(render_report(answer).rstrip("\n"), file=stream or sys.stdout, flush=True)


def require_fit(answer: Plan) -> None:
    """Raise DoesNotFit, after the report, where memory is too small."""
    if not answer.memory.fits:
        print_plan(answer)
        raise DoesNotFit(too_large(answer))


def too_large(answer: Plan) -> str:
    """What is missing, and what would help."""
    memory = answer.memory
    fullest = max(memory.per_stage, key=lambda stage: stage.total_bytes)
    missing = memory.peak_bytes - memory.usable_bytes
    fix = next((one.fix for one in answer.warnings if one.id == "does-not-fit"), "")
    return (
        f"does not fit [memory]: stage {fullest.stage} needs {memory.peak_bytes / 2**30:.1f} of "
        f"{memory.usable_bytes / 2**30:.1f} GiB usable, {missing / 2**30:.1f} GiB too much. "
        f"Try {fix or 'more devices'}, or `launch search` for the fastest layout that fits."
    )


def this_machine():  # type: ignore[no-untyped-def]
    """What rendering must know of this machine."""
    from launcher.config.local_hardware import detect_machine
    from launcher.render.machine import Machine
    from launcher.submit.code import describe_code

    return Machine(
        python=sys.executable,
        cores=detect_machine().cores,
        package=PACKAGE,
        code=describe_code(),
        slurm_templates=slurm_templates(),
    )


def render_here(plan: Plan, run_dir: Path):  # type: ignore[no-untyped-def]
    """The files of a run for this machine."""
    from launcher.render.bundle import render_bundle

    return render_bundle(plan, run_dir, this_machine())


def refuse_here(bundle, answer: Plan, first_step: int = 0) -> None:  # type: ignore[no-untyped-def]
    """Refuse what cannot be started from here before anything is written."""
    from launcher.config.local_hardware import detect_machine
    from launcher.render.shell_lines import interpreter
    from launcher.submit.hosts import is_plain, refuse_unready_hosts
    from launcher.submit.local import refuse_if_not_here
    from launcher.submit.space import refuse_if_disk_is_small

    if is_plain(answer.run.launch):
        root, script = bundle.files.root, bundle.texts[bundle.script]
        for note in refuse_unready_hosts(
            answer, root, script, interpreter(answer, this_machine()), first_step
        ):
            print(f"note: {note}", file=sys.stderr)
        return
    refuse_if_not_here(answer, detect_machine())
    refuse_if_disk_is_small(answer, bundle.files.root, first_step)


def require_workers(answer: Plan) -> None:
    """Refuse what can be planned, but not be done by the workers; a dry run says so as well."""
    model, degrees = answer.run.model, answer.run.parallelism
    other = "another model; `launch plan` predicts this one"
    # Key, what it is where workers cannot do it, what to do.
    parts = (
        ("model.experts", model.experts and model.name, other),
        ("model.latent", model.latent and model.name, other),
        ("model.encoder", model.encoder and model.name, other),
        (
            "parallelism.offload",
            degrees.offload if degrees.offload != "none" else None,
            "parallelism.offload=none",
        ),
        ("parallelism.shard_size", degrees.shard_size, "parallelism.shard_size=null"),
        (
            "parallelism.recompute_every",
            degrees.recompute_every if degrees.recompute_every != 1 else None,
            "parallelism.recompute_every=1",
        ),
    )
    findings = [
        Finding(
            field=field,
            value=value,
            rule="planned-only",
            reason="can be planned, but workers do not do it yet",
            fix=fix,
        )
        for field, value, fix in parts
        if value is not None
    ]
    if findings:
        raise ConfigError(findings)


@contextlib.contextmanager
def hold_run(files: RunFiles) -> Iterator[None]:
    """Hold the run directory; SubmissionRefused where another command or job has it."""
    from launcher.checkpoint.lock import Held, hold, holder_of, wait_until_free

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(files.launch_lock))
            if (holder := holder_of(files.job_lock)) is not None:
                wait = f"waiting up to {_OTHER_JOB_ENDS_S:.0f} s for {holder}, which works here"
                print(wait, file=sys.stderr, flush=True)
            wait_until_free(files.job_lock, _OTHER_JOB_ENDS_S)
        except Held as held:
            finding = Finding(
                field=str(files.root),
                rule="run-in-use",
                reason=f"{held} works in it",
                fix="again when that has ended",
            )
            raise SubmissionRefused(str(finding)) from held
        except OSError as error:
            raise SubmissionRefused(
                f"{files.root} [run-dir-not-writable]: {error.strerror}. "
                "Try again when the directory can be written."
            ) from error
        yield


def start_job(bundle, answer: Plan, first_step: int = 0) -> None:  # type: ignore[no-untyped-def]
    """Start the written bundle, follow it to its end and print what came out.

    Of a run whose hosts are started by hand it only says how.
    """
    from launcher.plan.own_table import has_row
    from launcher.submit.hosts import close_plain_job, how_to_start, is_plain, record_plain_job
    from launcher.submit.local import run_bundle
    from launcher.submit.summary import render_summary, write_failure

    launch, files = answer.run.launch, bundle.files
    print(f"\nrun directory  {files.root}", flush=True)
    job_id = record_plain_job(files, launch.name) if is_plain(launch) else ""
    if launch.name == "torchrun" and launch.start == "manual":
        print(
            f"{how_to_start(launch, files.root)}\nfollow it      launch logs {files.root} --follow"
        )
        return
    gc.enable()
    try:
        run_bundle(bundle, answer, first_step)
    except (LaunchError, KeyboardInterrupt) as error:
        status = "failed" if isinstance(error, LaunchError) else "interrupted"
        write_failure(files, status, str(error))
        why = (str(error).splitlines() or ["it was interrupted"])[0]
        close_plain_job(files, job_id, status == "interrupted", why)
        print(f"run directory  {files.root}", file=sys.stderr)
        raise
    print(render_summary(files))
    if has_row(files):
        print(f"measured runs  {files.table}")
    print(f"run directory  {files.root}")
