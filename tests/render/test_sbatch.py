"""Is the Slurm script what the plan and the site say, and does hostile text stay text?

Golden scripts lie in golden/; after a change that is meant: UPDATE_GOLDEN=1, and read the diff.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.config.assets import slurm_templates
from launcher.plan.records import Plan
from launcher.render.header import quote_option
from launcher.render.sbatch import render_array
from launcher.submit.write import write_bundle
from tests.factory import TINY, h100
from tests.render.shell import HOSTILE
from tests.submit.cases import bundled, planned, submitting_machine

GOLDEN = Path(__file__).parent / "golden"


def slurm_plan(**launch: object) -> Plan:
    return planned(launch={"name": "slurm", **launch})


def two_nodes(**launch: object) -> Plan:
    parallelism = {"tp": 4, "pp": 2, "dp": 2}
    model = TINY | {"num_kv_heads": 4}
    launch = {"name": "slurm", **launch}
    return planned(model=model, hardware=h100(num_nodes=2), parallelism=parallelism, launch=launch)


def script(plan: Plan, root: Path = Path("/runs/r"), python: str = "python") -> str:
    bundle = bundled(root, plan, python)
    return bundle.texts[bundle.script]


def sbatch_options(text: str) -> dict[str, str]:
    """What sbatch reads: the #SBATCH lines before the first command, by its own quoting rules."""
    options = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = _one_word(line.removeprefix("#SBATCH ")).partition("=")
            options[name] = value
        elif line and not line.startswith("#"):
            break
    return options


def _one_word(line: str) -> str:
    """As sbatch reads a line: a backslash escapes everywhere; a blank outside quotes ends it."""
    word, quote, position = "", "", 0
    while position < len(line):
        letter = line[position]
        if letter == "\\":
            position += 1
            word += line[position]
        elif quote and letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote = letter
        else:
            assert quote or not letter.isspace(), f"more than one word: {line}"
            word += letter
        position += 1
    assert not quote
    return word


# Templates

BARE = {
    "partition": "gpu", "account": "007", "qos": "high", "time_limit": "1-00:00:00",
    "constraint": "h100&ib", "exclude": "n[7-9]", "cpus_per_task": 64, "mem": "0",
    "gpu_type": "h100", "modules": ("cuda/12.4",), "venv": "/home/me/env",
    "setup": ("ulimit -n 65536",), "env": {"NCCL_SOCKET_IFNAME": "ib0"},
    "secrets": ("WANDB_API_KEY",), "sbatch_options": ("--mail-type=END",),
}  # fmt: skip
CONTAINER = {"mounts": ("/data", "/scratch/me:/scratch:ro"), "secrets": ("HF_TOKEN",)}
CASES = {
    "bare": two_nodes(**BARE),
    "conda": two_nodes(conda="my env", requeue=False),
    "modules": two_nodes(modules=("gcc/13", "cuda/12.4"), gres="none", setup=("module list",)),
    "uv": two_nodes(venv="/shared/my project/.venv"),
    "follow_up": two_nodes(requeue=False, follow_ups=2, time_limit="12:00:00", signal_seconds=300),
    "pyxis": two_nodes(
        container="pyxis", image="nvcr.io#nvidia/pytorch:25.01-py3",
        container_options=("--no-container-mount-home",), **CONTAINER,
    ),
    "apptainer": two_nodes(container="apptainer", image="/images/a b.sif", **CONTAINER),
}  # fmt: skip


def rendered(case: str) -> str:
    if case == "array":
        plans = [slurm_plan(array_limit=2, partition="cpu")] * 4
        return render_array(plans, Path("/runs/sweep 1"), "sweep", submitting_machine())
    return script(CASES[case])


@pytest.mark.parametrize("case", [*CASES, "array"])
def test_a_template_renders_to_its_golden_script(case):
    path = GOLDEN / f"{case}.sbatch"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(rendered(case))
    assert rendered(case) == path.read_text()


def test_every_template_has_a_golden_script():
    assert set(slurm_templates()) <= {path.stem for path in GOLDEN.iterdir()}


# A mount is a path: a rule refuses the comma, which separates mounts.
MOUNTS = tuple(f"/m/{text}" for text in HOSTILE if "," not in text)


def hostile_script(environment: str) -> str:
    """All hostile texts in all places of one script; `environment` is conda or venv."""
    texts = tuple(HOSTILE)
    env = {f"GIVEN_{number}": text for number, text in enumerate(texts)}
    launch: dict[str, object] = {"mounts": MOUNTS, "modules": texts, "env": env}
    everywhere = " ".join(texts)
    launch |= {"job_name": everywhere, environment: everywhere, "image": everywhere}
    plan = slurm_plan(container="apptainer", container_python=everywhere, **launch)
    return script(plan, Path("/runs") / everywhere, everywhere)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing(tmp_path):
    for case in (*CASES, "array"):
        (tmp_path / f"{case}.sh").write_text(rendered(case))
    for environment in ("conda", "venv"):
        (tmp_path / f"hostile_{environment}.sh").write_text(hostile_script(environment))
    folder = Path("/runs") / " ".join(HOSTILE)
    array = render_array([slurm_plan()], folder, "n", submitting_machine())
    (tmp_path / "hostile_array.sh").write_text(array)
    files = sorted(str(path) for path in tmp_path.iterdir())
    for path in files:
        subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_template_has_arithmetic_or_a_hole_that_is_left():
    for case in (*CASES, "array"):
        assert not re.search(r"\$\(\(|\$\{[a-z]+_[a-z]+\}$", rendered(case))


# Hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_one_option_each_of_the_job(tmp_path, shell, text):
    keys = ("job_name", "partition", "account", "qos", "constraint", "reservation", "nodelist",
            "exclude", "mem", "gres")  # fmt: skip
    root = tmp_path / "runs" / text
    plan = slurm_plan(**dict.fromkeys(keys, text))
    write_bundle(bundled(root, plan, python="python"))
    content = (root / "job.sbatch").read_text()
    options = sbatch_options(content)
    for key in keys:
        assert options["--" + key.replace("_", "-")] == text
    assert options["--output"] == str(root / "logs").replace("%", "%%") + "/slurm-%j.log"
    calls = shell(root / "job.sbatch")
    assert [call[3] for call in calls if call[0] == "python"] == ["start", "end"]
    assert all(str(root) in call for call in calls)
    assert content.count("#SBATCH") == len(options), "no option was smuggled in"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_around_the_workers_is_one_word_each(tmp_path, shell, text):
    mounts = tuple({f"/m/{text}"} & set(MOUNTS))
    plan = slurm_plan(
        env={"GIVEN": text}, container="apptainer", image=f"/i/{text}",
        mounts=mounts, container_python=text, container_options=(f"--env={text}",),
    )  # fmt: skip
    write_bundle(bundled(tmp_path / "run", plan, python="python"))
    calls = shell(tmp_path / "run" / "job.sbatch")
    (step,) = (call for call in calls if call[0] == "srun")
    binds = [f"--bind={mount}:{mount}" for mount in mounts]
    for word in (f"/i/{text}", *binds, text, f"--env={text}"):
        assert word in step


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_of_environments_are_one_word_each(tmp_path, text):
    lines = script(slurm_plan(modules=(text,), conda=text)).splitlines()
    program = "\n".join(
        line.replace("module load", "printf '%s\\n'").replace("conda activate", "printf '%s\\n'")
        for line in lines
        if line.startswith(("module load", "conda activate"))
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{text}\n{text}\n"
    lines = script(slurm_plan(venv=f"/v/{text}")).splitlines()
    (activate,) = (line for line in lines if line.startswith(". "))
    done = subprocess.run(
        ["bash", "-c", f"printf %s {activate[2:]}"], capture_output=True, text=True
    )
    assert done.stdout == f"/v/{text}/bin/activate"


def test_a_hostile_interpreter_is_one_word(tmp_path, shell):
    plan = slurm_plan(python="/a 'b' $(touch PWNED)/python")
    assert "python='/a '\"'\"'b'\"'\"' $(touch PWNED)/python'" in script(plan)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_run_directories_of_an_array_are_one_word_each(tmp_path, text):
    folder = tmp_path / text
    content = render_array([slurm_plan()] * 2, folder, "n", submitting_machine())
    for number in (0, 1):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "job.sbatch").write_text(f"echo task {number}")
        done = subprocess.run(
            ["bash", "-c", content], capture_output=True, text=True, cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(number)},
        )  # fmt: skip
        assert done.stdout == f"task {number}\n"
    output = str(folder).replace("%", "%%") + "/%a/logs/slurm-%A_%a.log"
    assert sbatch_options(content)["--output"] == output


def test_plain_values_are_not_quoted():
    assert quote_option("1-00:00:00") == "1-00:00:00"
    assert quote_option("h100&ib") == '"h100&ib"'


# What is run


def test_the_job_starts_one_agent_per_node(tmp_path, shell):
    root = tmp_path / "run"
    write_bundle(bundled(root, two_nodes(cpus_per_task=32), python="python"))
    assert shell(root / "job.sbatch") == [
        ["python", "-m", "launcher.node", "start", str(root)],
        ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32",
         "--cpu-bind=none", "--kill-on-bad-exit=1",
         "python", "-m", "launcher.node", "agent", str(root)],
        ["python", "-m", "launcher.node", "end", str(root), "0"],
    ]  # fmt: skip


def test_the_job_asks_for_what_the_plan_says(tmp_path):
    plan = two_nodes(partition="p", account="a", time_limit="1-00:00:00", signal_seconds=60)
    assert sbatch_options(script(plan, tmp_path / "run")) == {
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
        "--signal": "B:USR1@60",
        "--requeue": "",
    }


def test_options_that_are_open_are_left_to_the_cluster():
    options = sbatch_options(script(slurm_plan(exclusive=False, requeue=False)))
    assert set(options) == {
        "--job-name", "--nodes", "--ntasks-per-node", "--output", "--open-mode", "--signal",
        "--no-requeue",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("launch", "asked"),
    [
        ({}, {"--gpus-per-node": "8"}),
        ({"gpu_type": "h100"}, {"--gpus-per-node": "h100:8"}),
        ({"gres": "gpu:h100:8"}, {"--gres": "gpu:h100:8"}),
        ({"gres": "none"}, {}),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants(launch, asked):
    options = sbatch_options(script(two_nodes(**launch)))
    assert {key: options[key] for key in options if "g" in key[2:4]} == asked


def test_the_code_that_was_planned_comes_first_unless_it_is_installed(monkeypatch):
    text = script(slurm_plan())
    assert '\nexport PYTHONPATH=/code"${PYTHONPATH:+:$PYTHONPATH}"\n' in text


# The environment


def test_the_environment_of_another_job_ends_at_the_script(tmp_path, shell):
    plan = slurm_plan(secrets=("WANDB_API_KEY",), env={"GIVEN": "a b"})
    write_bundle(bundled(tmp_path / "run", plan, python="python"))
    foreign = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_EXPORT_ENV": "NONE", "SBATCH_QOS": "x",
        "SRUN_DEBUG": "3", "PMI_RANK": "0", "PMIX_ID": "1", "OMPI_COMM_WORLD_RANK": "1",
        "RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "1",
        "SLURM_DISTRIBUTION": "cyclic", "SLURM_STEP_ID": "0",
    }  # fmt: skip
    kept = {"SLURM_CONF": "/etc/s.conf", "SLURM_JOB_ID": "7", "WANDB_API_KEY": "s3cret"}
    shell(tmp_path / "run" / "job.sbatch", **foreign, **kept)
    seen = dict(
        line.partition("=")[::2] for line in (tmp_path / "record.env").read_text().splitlines()
    )
    assert not set(foreign) & set(seen)
    assert kept.items() <= seen.items()
    assert seen["GIVEN"] == "a b"
    assert seen["OMP_NUM_THREADS"] == "1"


def test_a_secret_is_named_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    bundle = bundled(tmp_path, slurm_plan(secrets=("WANDB_API_KEY",)))
    assert "WANDB_API_KEY" in bundle.texts[bundle.script]
    assert not any("s3cret" in text for text in bundle.texts.values())


def test_a_job_without_its_secret_ends_before_it_starts(tmp_path):
    path = tmp_path / "job.sbatch"
    path.write_text(script(slurm_plan(secrets=("WANDB_API_KEY",)), python="false"))
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, env={"PATH": "/bin"})
    assert done.returncode != 0
    assert "WANDB_API_KEY: is not set: submit from a shell that has it" in done.stderr


def test_a_line_of_the_environment_that_fails_ends_the_job(tmp_path, shell):
    path = tmp_path / "job.sbatch"
    path.write_text(script(slurm_plan(setup=("echo $NOT_SET", "false", "echo reached"))))
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "\n")


def test_threads_follow_the_cores_that_are_asked_for():
    assert "export OMP_NUM_THREADS=4" in script(two_nodes(cpus_per_task=32))


def test_one_connection_is_for_tensor_parallel_ranks_and_not_for_fsdp2():
    tensor = script(two_nodes())
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in tensor
    parallelism = {"tp": 4, "pp": 1, "dp": 4, "engine": "fsdp2", "zero_stage": 3}
    model = TINY | {"num_kv_heads": 4}
    sharded = script(
        planned(model=model, hardware=h100(num_nodes=2), parallelism=parallelism,
                launch={"name": "slurm"})
    )  # fmt: skip
    assert "export CUDA_DEVICE_MAX_CONNECTIONS" not in sharded
    assert "\nunset CUDA_DEVICE_MAX_CONNECTIONS\n" in sharded


# Containers


def test_data_of_the_run_is_seen_inside_unless_a_mount_covers_it():
    data = {"name": "tokens", "kind": "tokens", "path": "/data/c4/a.bin"}
    for mounts, seen in (((), True), (("/data",), False), (("/x:/data/c4",), False)):
        launch = {"name": "slurm", "container": "apptainer", "image": "i", "mounts": mounts}
        text = script(planned(data=data, launch=launch))
        assert ("--bind=/data/c4:/data/c4" in text) == seen


def test_a_cpu_job_does_not_ask_the_container_for_gpus():
    assert "--nv" not in script(slurm_plan(container="apptainer", image="i"))
    assert "--nv" in script(two_nodes(container="apptainer", image="i"))
