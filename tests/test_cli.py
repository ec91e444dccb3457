"""Does every command line end in an answer or a finding, with the right exit code?"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import cli, commands
from launcher.config.local_hardware import LocalGpu, LocalMachine
from launcher.config.rules import RULES
from launcher.errors import RunFailed, SubmissionRefused
from tests.config.trees import write_tree

ROOT = Path(__file__).resolve().parents[1]
USER_MISTAKES = {0, 2, 3, 4}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is ever written to the repository."""
    monkeypatch.chdir(tmp_path)


def launch(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as end:  # --help and --version
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


# Exit codes


def test_0_where_the_plan_fits():
    code, out, err = launch("plan")
    assert (code, err) == (0, "")
    assert out.startswith("model ")


def test_1_where_the_run_fails(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RunFailed("rank 3 on node x (dp 0, pp 1, tp 1) failed: boom")

    monkeypatch.setattr("launcher.submit.local.run_script", fail)
    code, _, err = launch("run")
    assert code == 1
    assert err.splitlines()[-1].startswith("rank 3 on node x") or "boom" in err


def test_2_where_the_configuration_is_wrong_and_nothing_is_printed_on_stdout():
    code, out, err = launch("plan", "parallelism.tpp=2", "train.steps=x")
    assert (code, out) == (2, "")
    assert err == (
        "parallelism.tpp [unknown-key]: no such key; did you mean 'tp'?\n"
        "train.steps=x [wrong-type]: a whole number is wanted, and this is text. "
        "Try train.steps=60.\n"
    )


def test_a_schedule_file_is_judged_together_with_all_other_keys(tmp_path):
    (tmp_path / "bad.csv").write_text("F0, B0, F1, B1\nF1, B1, F0, B0\n")
    layout = ("parallelism.pp=2", "parallelism.tp=3", "parallelism.schedule=bad.csv")
    code, _, err = launch("plan", "model=tiny", *layout)
    assert code == 2
    assert "[tp-divides-heads]" in err
    assert "[schedule-file-fits]: deadlock: stage 0 waits at B0 for stage 1" in err
    (tmp_path / "bad.csv").unlink()
    code, _, err = launch("plan", "model=tiny", *layout)
    assert (code, err.count("parallelism.schedule=bad.csv [")) == (2, 1)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_3_where_it_does_not_fit(verb):
    code, _, err = launch(verb, "model=gpt_1t", "hardware=h100x8")
    assert code == 3
    assert "does not fit [memory]" in err
    assert os.listdir() == [], "nothing is written"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["hardware=h100x64"], "not-this-machine"),
        (["hardware=h100x8"], "not-this-machine"),
        (["hardware=h100x64", "launch=slurm"], "slurm-"),
    ],
)
def test_4_where_it_cannot_be_submitted_from_here(words, reason):
    code, _, err = launch("run", *words)
    assert code == 4
    assert f"[{reason}" in err
    assert os.listdir() == [], "nothing is written"


def test_4_where_the_run_directory_is_in_use(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("precious")
    code, _, err = launch("run", "--run-dir", "used")
    assert code == 4
    assert "[run-dir-exists]" in err
    assert (tmp_path / "used" / "file").read_text() == "precious"


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_signal_ends_with_the_code_that_the_shell_expects(monkeypatch, number, code):
    from launcher.submit.local import Interrupted

    def interrupted(request: commands.Request) -> int:
        raise Interrupted(number)

    verb = cli.Verb(action=interrupted, flags=cli._VERBS["plan"].flags)
    monkeypatch.setitem(cli._VERBS, "plan", verb)
    assert launch("plan")[0] == code


def test_every_error_a_user_may_see_has_an_exit_code():
    assert SubmissionRefused.exit_code == 4


# Verbs and flags


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plna"], "plna [unknown-verb]: neither a verb nor an override (key=value). "
                   f"Legal here: {', '.join(sorted(cli._VERBS))}. Try launch plan."),
        (["convert", "folder", "model.name=x"],
         "launch convert SRC DST [missing-operand]: DST not given."),
        (["plan", "--jsno"], "--jsno [unknown-flag]: no such flag; did you mean '--json'?"),
        (["--zzz"], "--zzz [unknown-flag]: no such flag. Try launch --help."),
        (["--json"], "--json [unused-flag]: `launch run` has no such flag. Legal here: --cfg, "
                     "--config-dir, --dry-run, --multirun, --run-dir, --wait."),
        (["plan", "--dry-run"], "--dry-run [unused-flag]: `launch plan` has no such flag. "
         "Legal here: --cfg, --config-dir, --html, --json, --multirun, --trace."),
        (["plan", "--cfg", "job", "--json"], "--json [unused-flag]: `launch plan --cfg` has no "
         "such flag. Legal here: --cfg, --config-dir, --multirun, --package, --resolve."),
        (["plan", "--resolve"], "--resolve [unused-flag]: `launch plan` has no such flag. "
         "Legal here: --cfg, --config-dir, --html, --json, --multirun, --trace. Try --cfg job."),
        (["rules", "a=1"], "a=1 [unused-override]: `launch rules` takes no overrides."),
        (["rules", "-m"], "--multirun [unused-flag]: `launch rules` has no such flag. "
                          "Legal here: --json."),
        (["--run-dir="], "--run-dir [no-such-directory]: the name of the run directory is empty. "
                          "Try --run-dir runs/mine."),
        (["plan", "--config-dir", "no"], "--config-dir=no [no-such-directory]: not a folder."),
        (["plan", "--config-dir", "x" * 300], f"--config-dir={'x' * 300} [no-such-directory]: "
                                              "not a folder."),
        (["plan", "--config-dir"], "--config-dir [flag-value]: expected one argument. "
                                   "Try launch --help."),
        (["--cfg", "x"], "--cfg [flag-value]: invalid choice: 'x' "
                         "(choose from 'job', 'hydra', 'all'). Try launch --help."),
        (["checkpoints", "r", "--diff", "1"], "--diff [flag-value]: expected 2 arguments. "
                                              "Try launch --help."),
        (["checkpoints", "r", "--verify", "--diff", "1", "2"],
         "--verify [unused-flag]: --diff compares two checkpoints and verifies none. Try "
         "launch checkpoints RUN --verify, then launch checkpoints RUN --diff A B."),
        (["checkpoint", "r", "--timeout", "-1"], "--timeout=-1.0 [out-of-range]: seconds to wait "
                                                 "must be more than 0. Try --timeout 300."),
        (["plan", "--timeout", "0"], "--timeout [unused-flag]: `launch plan` has no such flag. "
         "Legal here: --cfg, --config-dir, --html, --json, --multirun, --trace."),
        (["-sc", "install=csh"], "--shell-completion=install=csh [unknown-value]: no such shell "
         "or action. Legal here: install=bash, install=zsh, install=fish, uninstall=bash, "
         "uninstall=zsh, uninstall=fish. Try -sc install=bash."),
    ],
)  # fmt: skip
def test_a_mistaken_command_line_is_explained(words, text):
    code, out, err = launch(*words)
    assert (code, out, err.rstrip("\n")) == (2, "", text)


@pytest.mark.parametrize(
    ("extra", "more"),
    [
        ("train.seed=1", set()),
        ("parallelism.tp=3", {"tp-divides-heads", "tp-fits-kv-heads"}),
        ("train.stepps=1", {"unknown-key"}),
        ("train.seed=x", {"wrong-type"}),
    ],
)
def test_files_that_are_not_there_are_named_beside_every_other_mistake(extra, more):
    files = ["data=store", "data.path=/no/store", "train.init_from=/no/weights"]
    code, _, err = launch("plan", "model=tiny", *files, extra)
    rules = {line.partition("[")[2].partition("]")[0] for line in err.splitlines()}
    assert (code, rules) == (2, {"data-readable", "weights-readable"} | more)


def test_flags_and_overrides_mix_in_any_order(tmp_path):
    write_tree(tmp_path / "tree", model__mine="defaults: [tiny]\nname: mine\n")
    answers = [
        launch(*words)
        for words in (
            ["plan", "--json", "model=mine", "--config-dir", "tree"],
            ["--config-dir=tree", "--json", "plan", "model=mine"],
            ["plan", "model=mine", "-cd", "tree", "--json"],
        )
    ]
    assert [code for code, _, _ in answers] == [0, 0, 0]
    assert len({out for _, out, _ in answers}) == 1


def test_help_names_verbs_groups_and_flags():
    code, out, _ = launch("--help")
    assert code == 0
    for word in (*cli._VERBS, "hardware", "parallelism", "--dry-run", "--config-dir"):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_version():
    code, out, _ = launch("--version")
    assert (code, out.split()[0]) == (0, "launch")


# Documents


def one_document(out: str) -> object:
    document, end = json.JSONDecoder().raw_decode(out)
    assert out[end:] == "\n"
    return document


def test_plan_json_is_one_document_and_nothing_else():
    code, out, err = launch("plan", "--json")
    assert (code, err) == (0, "")
    assert one_document(out)["layout"]["world_size"] == 4


def test_plan_json_of_what_does_not_fit_is_still_one_document():
    code, out, _ = launch("plan", "--json", "model=gpt_1t", "hardware=h100x8")
    assert code == 3
    assert one_document(out)["memory"]["fits"] is False


def test_plan_json_of_a_mistake_leaves_stdout_empty():
    code, out, err = launch("plan", "--json", "oops=1")
    assert (code, out) == (2, "")
    assert "[unknown-key]" in err


def test_plan_json_of_a_sweep_is_one_list():
    code, out, _ = launch("plan", "--json", "-m", "train.seed=1,2", "parallelism.zero_stage=0,1")
    assert code == 0
    runs = [document["run"] for document in one_document(out)]
    assert [(run["train"]["seed"], run["parallelism"]["zero_stage"]) for run in runs] == [
        (1, 0), (1, 1), (2, 0), (2, 1)
    ]  # fmt: skip


def test_a_mistake_in_one_job_of_a_sweep_stops_all_before_the_first_starts():
    code, _, err = launch("run", "-m", "parallelism.tp=2,3")
    assert code == 2
    assert "[tp-divides-heads]" in err
    assert os.listdir() == []


def test_rules_json_has_every_rule():
    code, out, _ = launch("rules", "--json")
    assert code == 0
    assert {rule.id for rule in RULES} <= {row["id"] for row in one_document(out)}


def test_rules_are_printed():
    code, out, _ = launch("rules")
    assert code == 0
    assert "tp-divides-heads  (parallelism.tp)" in out


@pytest.mark.parametrize("kind", ["job", "hydra", "all"])
def test_cfg_prints_yaml(kind):
    code, out, _ = launch("--cfg", kind, "model=tiny")
    assert code == 0
    document = yaml.safe_load(out)
    assert ("hydra" in document, "model" in document) == (kind != "job", kind != "hydra")


def test_cfg_of_a_sweep_is_one_document_per_job():
    _, out, _ = launch("--cfg", "job", "-m", "train.seed=1,2")
    assert [document["train"]["seed"] for document in yaml.safe_load_all(out)] == [1, 2]


def test_a_dry_run_prints_the_script_and_writes_nothing():
    code, out, _ = launch("--dry-run")
    assert code == 0
    assert out.startswith("#!/usr/bin/env bash\n")
    assert os.listdir() == []


def test_output_into_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m launcher.cli rules | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# What a plan loads

_LISTS_MODULES = """
import sys
from launcher.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "deepspeed", "numpy", "rich", "subprocess"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["plan"],
        ["plan", "--json", "parallelism=3d", "hardware=h100x64", "model=llama3_70b"],
        ["plan", "oops=1"],
        ["rules"],
    ],
)
def test_planning_loads_neither_torch_nor_deepspeed_nor_numpy(words):
    done = subprocess.run(
        [sys.executable, "-c", _LISTS_MODULES, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 2)
    assert done.stderr.splitlines()[-1] == "[]"


# Mistakes never end in a traceback

NASTY = [
    [""], ["="], ["=1"], ["~"], ["+"], ["++"], ["+="], ["a"], ["a="], ["a=="], ["-"], ["--"],
    ["~train"], ["~model.name"], ["~hardware.gpu.name"], ["train=null"], ["train.steps="],
    ["train=default", "train=default"], ["model=tiny", "model=auto"], ["+model=tiny"],
    ["model.num_layers=99999999999999999999"], ["model.num_layers=1000"],
    ["train.steps=1e400"], ["train.steps=nan"],
    ["model.hidden_size=0"], ["model.num_heads=7"], ["model.head_dim=1"],
    ["model.rope_scaling={factor:1}"], ["model={name:x}"], ["model.name.x=1"], ["model.0=1"],
    ["train.steps.a.b=1"], ["hardware.gpu={}"], ["hardware.node=[]"], ["hardware=local", "~model"],
    ["hardware.gpu.memory_bytes=1"], ["hardware.gpu.peak_flops={fp32:1e-300,bf16:1e-300}"],
    ["hardware.num_nodes=100000"], ["hardware.gpus_per_node=100000"],
    ["hardware/gpu=h100_sxm"], ["+hardware/gpu=h100_sxm"], ["hardware/gpu@x=h100_sxm"],
    ["parallelism.tp=1000000"], ["parallelism.order=[]"], ["parallelism.order=[tp,tp,tp,tp]"],
    ["parallelism.order={a:b}"], ["parallelism.recompute=null", "parallelism.tp=null"],
    ["parallelism=3d", "parallelism.pp=5"], ["parallelism=[3d]"], ["parallelism=''"],
    ["train.global_batch_size=7", "train.micro_batch_size=2", "train.num_microbatches=2"],
    ["train.micro_batch_size=1000000"], ["train.sequence_length=1"],
    ["name=${name}"], ["name=${model}"], ["name=${oc.env:HOME}"], ["name=${${name}}"],
    ["train.steps=${train.seed}"], ["model=${name}"], ["name=???"], ["train=${model}"],
    ["hydra.run.dir=x"], ["hydra.searchpath=[]"], ["hydra.searchpath=x"], ["hydra=x"],
    ["hydra.searchpath=[pkg://nothing.here]"], ["hydra.searchpath=[null]"], ["hydra/launcher=x"],
    ["x" * 300 + "=1"], ["model=" + "x" * 300], ["../model=tiny"], ["model=../data/tokens"],
    ["/etc=passwd"], ["model=/etc/passwd"], ["a/b/c=d"], ["a@b@c=d"], ["model:x=tiny"],
    ["train.steps=1,2"], ["train.steps=range(0)"], ["model=glob(*)"], ["train.seed=sort(3,1)"],
    ["launch.job_name='a\nb'"], ["launch.job_name=\udcff"], ["name=\x1b[31m"], ["name='\u2028'"],
    ["checkpoint.keep=-1"], ["data=tokens"], ["data=tokens", "data.path=/nowhere"],
    ["recipe=null"], ["~recipe"], ["recipe=quickstart", "~recipe"], ["+recipe=quickstart"],
    ["optimizer.learning_rate=-0.0"], ["optimizer.clip_grad_norm=0"], ["precision.compute=FP32"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", NASTY, ids=lambda words: " ".join(words)[:40])
def test_no_mistake_ends_in_a_traceback(overrides):
    code, out, err = launch("plan", *overrides)
    assert code in USER_MISTAKES
    assert bool(out) == (code in (0, 3))
    assert bool(err) == (code != 0)
    for line in err.splitlines():
        assert line.isprintable()
        assert "[" in line, f"no rule id: {line}"


@pytest.mark.parametrize(
    "words",
    [["-m"], ["-m", "a"], ["-m", "train.seed=range(0)"], ["-m", "model=glob(l*)"],
     ["-m", "train.seed=1,2", "model=zzz"], ["-m", "x=,"], ["--cfg", "job", "a="],
     ["--cfg", "job", "-p", "model..name"], ["--cfg", "job", "-p", ""], ["--", "train.steps=3"],
     ["--cfg", "all", "--resolve"], ["--cfg", "job", "name=${nope}", "--resolve"]],
    ids=" ".join,
)  # fmt: skip
def test_no_mistaken_flag_ends_in_a_traceback(words):
    assert launch("plan", *words)[0] in USER_MISTAKES


# Arguments of a program cannot hold a null character.
words = st.text(st.characters(exclude_characters="\0"), max_size=20)
keys = st.sampled_from(
    ["train.steps", "model", "model.name", "parallelism.order", "hardware.gpu", "launch.job_name",
     "name", "~train.seed", "+x", "hardware", "recipe", "hydra.searchpath", "train"]
)  # fmt: skip


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.one_of(words, st.builds("{}={}".format, keys, words)), min_size=1, max_size=4))
def test_no_text_as_an_override_ends_in_a_traceback(overrides):
    code, _, err = launch("plan", "--", *overrides)
    assert code in USER_MISTAKES
    assert bool(err) == (code != 0)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(exclude_characters="\0"), max_size=40))
def test_no_text_in_an_own_conf_file_ends_in_a_traceback(tmp_path, text):
    write_tree(tmp_path / "tree", launch__mine="")
    (tmp_path / "tree" / "launch" / "mine.yaml").write_text(text, "utf-8", "surrogatepass")
    assert launch("plan", "--config-dir", "tree", "launch=mine")[0] in USER_MISTAKES


def test_a_command_line_that_is_no_utf8_is_explained_in_any_locale():
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"launcher.cli", b"plan", b"name=\xff\xfe"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# Local hardware through the command line


def test_a_machine_with_gpus_is_used(monkeypatch):
    gpu = LocalGpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)
    here = LocalMachine(
        gpus=(gpu,) * 8, cores=64, clock_hz=2e9, flops_per_cycle=32, memory_bytes=2**40
    )
    detect: Callable[[], LocalMachine] = lambda: here  # noqa: E731
    monkeypatch.setattr("launcher.config.load.detect_machine", detect)
    monkeypatch.setattr("launcher.config.load.load_run.__defaults__", ((), detect, lambda run: ()))
    code, out, _ = launch("plan", "hardware=local", "--json")
    assert code == 0
    assert one_document(out)["layout"]["world_size"] == 8
