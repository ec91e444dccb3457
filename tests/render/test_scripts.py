"""Do the scripts run what the plan says, and does hostile text stay text?"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.config.load import load_run
from launcher.config.local_hardware import LocalMachine
from launcher.config.quoting import hydra_text
from launcher.plan.build import build_plan
from launcher.render.environment import worker_environment
from launcher.submit.write import write_bundle
from tests.factory import TINY, h100
from tests.submit.cases import bundled, planned

MACHINE = LocalMachine(gpus=(), cores=4, clock_hz=2e9, flops_per_cycle=32, memory_bytes=16 * 2**30)
HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "a' ; touch PWNED ; '",
    'a" ; touch PWNED ; "',
    "$HOME && touch PWNED",
    "\\",
    "\\'\\\"",
    "a b  c",
    "%j %% %x",
    "--job-name=other",
    "-rf /",
    "*?[a]",
    "é 日本",
    "!history",
    "{a,b}",
    "#",
]
# A program in the place of python, srun and scontrol: it writes down how it was called.
RECORDER = """#!/bin/sh
{ printf '%s' "$(basename "$0")"; for word in "$@"; do printf '\\037%s' "$word"; done; echo; } \
    >> "$RECORD"
case "$(basename "$0")" in scontrol) echo first-node; echo second-node;; esac
case "$*" in *socket*) echo 12345;; esac
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a script among recorders; returns the recorded calls."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python", "srun", "scontrol"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    record = tmp_path / "record"

    def run(script: Path, **environment: str) -> list[list[str]]:
        subprocess.run(["bash", "-n", str(script)], check=True)
        done = subprocess.run(
            ["bash", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record),
                 "HOME": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
                 **environment},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert not list(tmp_path.rglob("PWNED")), "text was executed"
        return [line.split("\037") for line in record.read_text().splitlines()]

    return run


def slurm_plan(**launch: str):
    return planned(launch={"name": "slurm", **launch})


def sbatch_options(script: str) -> dict[str, str]:
    """What sbatch reads: the #SBATCH lines before the first command, quotes removed."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.partition("=")
            options[name] = value
        elif line and not line.startswith("#"):
            break
    return options


# Hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_run_directory_is_one_word_of_the_command(tmp_path, shell, text):
    root = tmp_path / "runs" / text
    bundle = bundled(root, python="python")
    write_bundle(bundle)
    (call,) = shell(root / "command.sh")
    assert call[0] == "python"
    assert call[-1] == str(root)
    assert call[-3:-1] == ["--module", "launcher.runtime.worker"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_one_option_each_of_the_job(tmp_path, shell, text):
    plan = slurm_plan(job_name=text, partition=text, account=text)
    root = tmp_path / "runs" / text
    bundle = bundled(root, plan, python="python")
    write_bundle(bundle)
    script = (root / "job.sbatch").read_text()
    options = sbatch_options(script)
    assert options["--job-name"] == options["--partition"] == options["--account"] == text
    assert options["--output"] == str(root / "logs").replace("%", "%%") + "/slurm-%j.log"
    calls = shell(root / "job.sbatch")
    assert calls[-1][-1] == str(root)
    assert script.count("#SBATCH") == len(options), "no option was smuggled in"


@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "$HOME && touch PWNED"])
def test_hostile_names_of_the_command_line_survive_as_data(tmp_path, text):
    overrides = [f"launch.job_name={hydra_text(text)}", f"name={hydra_text(text)}"]
    loaded = load_run(overrides, machine=lambda: MACHINE)
    bundle = bundled(tmp_path / "run", build_plan(loaded.run))
    write_bundle(bundle)
    document = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert document["launch"]["job_name"] == document["name"] == text


def test_a_hostile_interpreter_is_one_word(tmp_path, shell):
    program = tmp_path / "a 'b' $(touch PWNED)"
    program.write_text(RECORDER)
    program.chmod(0o755)
    write_bundle(bundled(tmp_path / "run", python=str(program)))
    (call,) = shell(tmp_path / "run" / "command.sh")
    assert call[:3] == [program.name, "-m", "torch.distributed.run"]


# What is run


def test_the_command_starts_one_process_per_device(tmp_path, shell):
    write_bundle(bundled(tmp_path / "run", python="python"))
    (call,) = shell(tmp_path / "run" / "command.sh")
    assert call == [
        "python", "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=4",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--max-restarts=0",
        "--module", "launcher.runtime.worker", str(tmp_path / "run"),
    ]  # fmt: skip


def two_nodes(**launch: str):
    parallelism = {"tp": 4, "pp": 2, "dp": 2}
    model = TINY | {"num_kv_heads": 4}
    return planned(model=model, hardware=h100(num_nodes=2), parallelism=parallelism, launch=launch)


def test_a_command_for_several_nodes_asks_for_the_head(tmp_path, shell):
    write_bundle(bundled(tmp_path / "run", two_nodes(name="local"), python="python"))
    script = tmp_path / "run" / "command.sh"
    (call,) = shell(script, HEAD_NODE="n1", HEAD_PORT="99")
    assert "--nnodes=2" in call
    assert "--rdzv-endpoint=n1:99" in call
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "HEAD_NODE" in done.stderr


def test_the_job_starts_one_torchrun_per_node(tmp_path, shell):
    write_bundle(bundled(tmp_path / "run", two_nodes(name="slurm"), python="python"))
    calls = shell(tmp_path / "run" / "job.sbatch")
    assert calls[0] == ["scontrol", "show", "hostnames", "n[1-2]"]
    assert calls[1][0] == "srun"
    assert "--nodelist=first-node" in calls[1]
    assert calls[2] == [
        "srun", "--kill-on-bad-exit=1", "python", "-m", "torch.distributed.run", "--nnodes=2",
        "--nproc-per-node=8", "--rdzv-id=7", "--rdzv-backend=c10d",
        "--rdzv-endpoint=first-node:12345", "--max-restarts=0",
        "--module", "launcher.runtime.worker", str(tmp_path / "run"),
    ]  # fmt: skip


def test_the_job_asks_for_what_the_plan_says(tmp_path):
    plan = two_nodes(name="slurm", partition="p", account="a", time_limit="1-00:00:00")
    bundle = bundled(tmp_path / "run", plan)
    options = sbatch_options(bundle.texts[bundle.script])
    assert options == {
        "--job-name": "tiny",
        "--partition": "p",
        "--account": "a",
        "--time": "1-00:00:00",
        "--nodes": "2",
        "--ntasks-per-node": "1",
        "--gpus-per-node": "8",
        "--exclusive": "",
        "--output": f"{tmp_path}/run/logs/slurm-%j.log",
        "--open-mode": "append",
        "--signal": "B:USR1@120",
    }


def test_options_that_are_open_are_left_to_the_cluster(tmp_path):
    bundle = bundled(tmp_path / "run", slurm_plan())
    options = sbatch_options(bundle.texts[bundle.script])
    assert {"--partition", "--account", "--time", "--gpus-per-node"} & set(options) == set()


def test_the_bundle_has_the_script_of_its_launch_only(tmp_path):
    local = {path.name for path in bundled(tmp_path).texts}
    slurm = {path.name for path in bundled(tmp_path, slurm_plan()).texts}
    assert local - slurm == {"command.sh"}
    assert slurm - local == {"job.sbatch"}


# The environment of the workers


def variables(plan, cores: int = 8) -> dict[str, str]:
    found = worker_environment(plan, cores)
    assert all(len(variable.why) > 10 for variable in found)
    return {variable.name: variable.value for variable in found}


@pytest.mark.parametrize(("cores", "threads"), [(8, "2"), (4, "1"), (2, "1"), (7, "1")])
def test_cores_are_shared_by_the_ranks_of_a_node(cores, threads):
    assert variables(planned(), cores)["OMP_NUM_THREADS"] == threads


def test_threads_can_be_given():
    plan = planned(launch={"threads_per_rank": 3})
    assert variables(plan)["OMP_NUM_THREADS"] == "3"


def test_cpu_workers_meet_on_the_loopback():
    assert variables(planned())["GLOO_SOCKET_IFNAME"] == "lo"
    assert variables(planned())["DS_ACCELERATOR"] == "cpu"


def test_gpu_workers_are_not_told_that_they_have_a_cpu():
    found = variables(two_nodes(name="local"))
    assert "DS_ACCELERATOR" not in found
    assert found["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_the_environment_is_in_both_scripts(tmp_path):
    for plan in (planned(), slurm_plan()):
        bundle = bundled(tmp_path, plan)
        text = bundle.texts[bundle.script]
        for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR"):
            assert f"\nexport {name}=" in text
