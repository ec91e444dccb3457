"""Do the scripts run what the plan says, and does hostile text stay text?"""

from __future__ import annotations

import subprocess

import pytest
import yaml

from launcher.config.load import load_run
from launcher.config.local_hardware import LocalMachine
from launcher.config.quoting import hydra_text
from launcher.plan.build import build_plan
from launcher.render.environment import worker_environment
from launcher.submit.write import write_bundle
from tests.factory import TINY, h100
from tests.render.shell import HOSTILE, RECORDER
from tests.submit.cases import bundled, planned

MACHINE = LocalMachine(gpus=(), cores=4, clock_hz=2e9, flops_per_cycle=32, memory_bytes=16 * 2**30)


def slurm_plan(**launch: str):
    return planned(launch={"name": "slurm", **launch})


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
