"""What each verb does, as a few calls that answer."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

from launcher.config.assets import conf_dir
from launcher.config.schema import Run
from launcher.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, ConfigError, Finding
from launcher.frozen import frozen
from launcher.jobs import (
    hold_run,
    print_plan,
    refuse_here,
    render_here,
    require_fit,
    require_workers,
    start_job,
    this_machine,
    too_large,
)
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles


@frozen
class Request:
    """One command line, parsed."""

    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...]
    json: bool = False
    dry_run: bool = False
    run_dir: str | None = None
    multirun: bool = False
    command_line: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()
    """Words before the overrides, as many as the verb has."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Every flag by its long name with underscores; for those of a single verb."""


def run(request: Request) -> int:
    """Check, plan, write, start, follow; one after the other for every job of a sweep."""
    from launcher.render.bundle import run_name
    from launcher.submit.code import record_code
    from launcher.submit.write import new_run_dir, write_new

    jobs = _jobs(request)
    # Every job is checked before the first one starts.
    plans = [_plan_job(overrides, request) for overrides in jobs]
    for answer in plans:
        require_workers(answer)
    if {plan.run.launch.name for plan in plans} == {"slurm"}:
        from launcher.slurm_jobs import run_on_slurm

        is_followed = bool(request.flags.get("wait"))
        return run_on_slurm(plans, request.run_dir, is_dry=request.dry_run, is_followed=is_followed)
    for number, plan in enumerate(plans):
        require_fit(plan)
        # A dry run's standard output is the script alone, so that it can be piped.
        print_plan(plan, sys.stderr if request.dry_run else sys.stdout)
        chosen = request.run_dir
        if chosen and len(plans) > 1:
            chosen = str(Path(chosen) / str(number))
        name, render = run_name(plan.run), partial(render_here, plan)
        bundle = render(new_run_dir(name, chosen))
        if request.dry_run:
            print(bundle.texts[bundle.script], end="")
            continue
        refuse_here(bundle, plan)
        if plan.run.train.init_from is not None:
            from launcher.convert.init_from import require_init_from

            require_init_from(plan.run)
        bundle = write_new(bundle, name, chosen, render)
        record_code(bundle.files)
        with hold_run(bundle.files):
            start_job(bundle, plan)
    return EXIT_DONE


def plan(request: Request) -> int:
    """Check and predict; write the page and the trace where they are asked for."""
    codes = []
    documents = []
    jobs = _jobs(request)
    write = _plan_writer(request, jobs)
    for overrides in jobs:
        answer = _plan_job(overrides, request)
        codes.append(EXIT_DONE if answer.memory.fits else EXIT_DOES_NOT_FIT)
        if request.json:
            documents.append(answer.to_json())
        else:
            print_plan(answer)
            if not answer.memory.fits:
                print(too_large(answer), file=sys.stderr)
        write(answer)
    if request.json:
        document = documents if request.multirun else documents[0]
        print(json_module.dumps(document, indent=1))
    return max(codes)


def verify(request: Request) -> int:
    """Prove on CPU processes that the layout computes what one process computes."""
    from launcher.submit.verify import verify_plan

    answer = _plan_job(list(request.overrides), request)
    require_workers(answer)
    return verify_plan(answer, this_machine(), run_dir=request.run_dir, as_json=request.json)


def convert(request: Request) -> int:
    """Weights to and from Hugging Face."""
    from launcher.config.model_fields import read_model_overrides
    from launcher.convert.convert import Conversion
    from launcher.convert.convert import convert as convert_weights

    source, destination = (Path(os.path.expanduser(word)) for word in request.operands)
    flags = request.flags
    tokenizer = flags["tokenizer"]
    asked = Conversion(
        source=source,
        destination=destination,
        to=flags["to"],
        step=flags["step"],
        dtype=flags["dtype"],
        max_shard_size=flags["max_shard_size"],
        tokenizer=Path(os.path.expanduser(tokenizer)) if tokenizer else None,
        overrides=read_model_overrides(request.overrides),
    )
    print(convert_weights(asked))
    return EXIT_DONE


def tokenize(request: Request) -> int:
    """Text to a token store; it reads its own command line."""
    from launcher.data.command import main

    words = list(request.command_line)
    words.remove("tokenize")
    return main(words)


def rules(request: Request) -> int:
    """Print the table of rules."""
    from launcher.config.rules_table import render_rules, rules_document

    if request.json:
        print(json_module.dumps(rules_document(), indent=1))
    else:
        print(render_rules(), end="")
    return EXIT_DONE


def show_config(request: Request, kind: str, package: str | None, resolve: bool) -> int:
    """Print the composed configuration as Hydra's `--cfg` does, unchecked."""
    from launcher.config.compose import compose_run, config_text

    texts = []
    for overrides in _jobs(request):
        composed = compose_run(overrides, request.config_dirs)
        if composed.findings:
            raise ConfigError(composed.findings)
        texts.append(config_text(composed, kind, package, resolve))
    print("---\n".join(texts), end="")
    return EXIT_DONE


def shell_completion(command: str, verbs: Sequence[str], flags: Sequence[str]) -> int:
    """`-sc install=bash` prints shell code; the shell then calls `-sc query=bash`."""
    from launcher.completion import answer_completion

    print(answer_completion(command, os.environ.get("COMP_LINE", ""), verbs, flags), end="")
    return EXIT_DONE


def group_names() -> list[str]:
    """Config groups that can be chosen on the command line."""
    return [path.name for path in conf_dir().iterdir() if path.is_dir()]


def _jobs(request: Request) -> list[list[str]]:
    if not request.multirun:
        return [list(request.overrides)]
    from launcher.config.compose import split_sweep

    return split_sweep(request.overrides)


def _plan_job(overrides: Sequence[str], request: Request) -> Plan:
    """Compose, check and plan one job; nothing is written."""
    answer = _predict_job(overrides, request)
    run_dir = Path(request.run_dir).expanduser() if request.run_dir else Path("runs", "any")
    table = RunFiles(root=run_dir).table
    if not os.path.isfile(table):  # False, too, where the folder cannot be searched
        return answer
    from dataclasses import replace

    from launcher.plan.learned import learn

    return replace(answer, learned=learn(answer, table))


def _predict_job(overrides: Sequence[str], request: Request) -> Plan:
    """The plan, by the model alone."""
    from dataclasses import replace

    from launcher.config.load import load_run
    from launcher.plan.build import build_plan

    if "parallelism=auto" in overrides:
        from launcher.plan.search_auto import suiting_words

        overrides = [*overrides, *suiting_words(overrides)]
    loaded = load_run(overrides, request.config_dirs, also=_file_findings)
    run, chosen = loaded.run, loaded.decisions
    if run.parallelism.name == "auto":
        from launcher.plan.search_advice import best_run
        from launcher.plan.search_auto import fixed_keys

        run, found = best_run(run, fixed_keys(overrides, run))
        chosen += found
    if run.train.init_from is None:
        answer = build_plan(run)
        return replace(answer, decisions=(*chosen, *answer.decisions))
    from launcher.convert.init_from import settle_init_from  # numpy, so only where it is needed

    settled = settle_init_from(run)
    answer = build_plan(settled.run)
    return replace(
        answer,
        decisions=(*chosen, *settled.decisions, *answer.decisions),
        warnings=(*answer.warnings, *settled.warnings),
    )


def _file_findings(run: Run) -> Sequence[Finding]:
    """What is wrong in files that the plan reads: said together with everything else."""
    from launcher.plan.schedule_choice import check_schedule_file

    # Without lines the file cannot be read, and is refused for that.
    has_lines = run.parallelism.schedule_lines is not None
    return [*(check_schedule_file(run) if has_lines else ()), *_weights_findings(run)]


def _weights_findings(run: Run) -> Sequence[Finding]:
    """What is wrong with the weights that a run is to start from."""
    if run.train.init_from is None:
        return ()
    from launcher.convert.init_from import settle_init_from

    try:
        settle_init_from(run)
    except ConfigError as error:
        return error.findings
    return ()


def _plan_writer(request: Request, jobs: Sequence[Sequence[str]]) -> Callable[[Plan], None]:
    """What writes the files of --html and --trace; names that cannot be written end here."""
    html, trace = request.flags["html"], request.flags["trace"]
    if html is None and trace is None:
        return lambda answer: None
    from launcher.submit.plan_files import check_files, plan_files, write_files

    files = plan_files(html, trace)
    if findings := check_files(files, len(jobs)):
        raise ConfigError([*findings, *_mistakes(jobs, request)])

    def write(answer: Plan) -> None:
        for path in write_files(files, answer):
            print(f"written     {path}", file=sys.stderr if request.json else sys.stdout)

    return write


def _mistakes(jobs: Sequence[Sequence[str]], request: Request) -> Sequence[Finding]:
    """What is wrong with the first job that cannot be planned."""
    try:
        for overrides in jobs:
            _plan_job(overrides, request)
    except ConfigError as error:
        return error.findings
    return ()
