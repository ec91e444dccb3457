"""What the verbs on an existing run do: `resume`, `checkpoints` and `checkpoint`."""

from __future__ import annotations

import json as json_module
import sys

from launcher.commands import Request
from launcher.errors import EXIT_DONE, EXIT_RUN_FAILED, ConfigError, Finding
from launcher.jobs import (
    hold_run,
    print_plan,
    refuse_here,
    require_fit,
    require_workers,
    start_job,
    this_machine,
)
from launcher.plan.run_files import RunFiles

_ANSWER_S = 300.0


def resume(request: Request) -> int:
    """Continue a run from its newest checkpoint that verifies."""
    from launcher.submit.find_run import find_run

    files = find_run(request.operands[0])
    with hold_run(files):
        return _resume(files, request)


def _resume(files: RunFiles, request: Request) -> int:
    from launcher.config.resume import find_changes, refuse_changes
    from launcher.plan.resume import plan_resumed
    from launcher.render.bundle import render_bundle
    from launcher.slurm_jobs import require_ready, submit_bundle
    from launcher.submit.attempts import change_frozen, complete_pending
    from launcher.submit.code import record_code
    from launcher.submit.resume import (
        aside,
        has_steps_left,
        is_finished,
        read_frozen_run,
        record_text,
        replaced_data,
        saved_run,
        say_start,
    )
    from launcher.submit.slurm import refuse_if_queued
    from launcher.submit.start_point import find_start

    # 1. What the run is: a change that was cut off was decided, and counts.
    complete_pending(files)
    frozen = read_frozen_run(files)
    # 2. What it is to be; what the saved state does not bear is refused.
    plan = plan_resumed(frozen, request.overrides, request.config_dirs)
    # 3. Where it goes on.
    is_new = bool(request.flags.get("from_scratch"))
    if not request.overrides and not is_new and is_finished(files, frozen):
        return EXIT_DONE
    start = find_start(files, is_new)
    if not has_steps_left(start, plan.run.train.steps, request.overrides):
        return EXIT_DONE
    # What was saved is what counts: run.yaml may have been edited, or changed without a step done.
    changes = find_changes(saved_run(files, start) or frozen, plan.run)
    if findings := refuse_changes(changes):
        raise ConfigError(findings)
    changes += replaced_data(files, start, plan.run)
    require_workers(plan)
    require_fit(plan)
    say_start(start, changes, sys.stderr)
    print_plan(plan, sys.stderr if request.dry_run else sys.stdout)
    bundle = render_bundle(plan, files.root, this_machine())
    if request.dry_run:
        print(bundle.texts[bundle.script], end="")
        return EXIT_DONE
    is_slurm = plan.run.launch.name == "slurm"
    refuse_if_queued(files)
    if is_slurm:
        require_ready([plan], [files.root], bundle.texts[bundle.script], start.step)
    else:
        refuse_here(bundle, plan, start.step)
    # 4. New frozen files in the place of the old, and the job.
    record = record_text(files, start, changes, request.overrides)
    change_frozen(bundle, record, start.step, aside(files) if is_new else ())
    if is_slurm:
        submit_bundle(bundle, plan)
        return EXIT_DONE
    record_code(files)
    start_job(bundle, plan, start.step)
    return EXIT_DONE


def checkpoints(request: Request) -> int:
    """List the checkpoints of a run, verify them or compare two of them."""
    from launcher.submit.find_run import find_run

    files = find_run(request.operands[0])
    if request.flags.get("diff"):
        return _diff(files, request)
    from launcher.submit.checkpoint_list import (
        describe_checkpoints,
        list_refused,
        render_checkpoints,
    )

    found = describe_checkpoints(files, is_verified=bool(request.flags.get("verify")))
    refused = list_refused(files)
    if request.json:
        document = {
            "run_dir": str(files.root),
            "checkpoints": [one.to_json() for one in found],
            "set_aside": [{"name": name, "reason": reason} for name, reason in refused],
        }
        print(json_module.dumps(document, indent=1))
    else:
        print(render_checkpoints(files, found, refused))
    return EXIT_RUN_FAILED if any(one.reason for one in found) else EXIT_DONE


def _diff(files: RunFiles, request: Request) -> int:
    from launcher.checkpoint.diff import diff_checkpoints
    from launcher.submit.checkpoint_list import open_checkpoint, render_diff

    one, other = (open_checkpoint(files, word) for word in request.flags["diff"])
    try:
        result = diff_checkpoints(one, other)
    except ValueError as error:  # A file that the manifest promises and the disk does not hold.
        raise ConfigError(
            [Finding(field="--diff", rule="checkpoint-readable", reason=str(error))]
        ) from error
    if request.json:
        print(json_module.dumps(result.to_json(), indent=1))
    else:
        print(render_diff(result))
    return EXIT_DONE if result.is_equal else EXIT_RUN_FAILED


def checkpoint(request: Request) -> int:
    """Have a running job save now, and wait until the checkpoint is there."""
    from launcher.submit.find_run import find_run
    from launcher.submit.save_now import save_now

    files = find_run(request.operands[0])
    timeout_s = request.flags.get("timeout")
    name = save_now(files, _ANSWER_S if timeout_s is None else float(timeout_s))
    print(files.checkpoints / name)
    return EXIT_DONE
