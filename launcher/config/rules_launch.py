"""Rules on submission: what a queue, a container or a shell would misread."""

from __future__ import annotations

import re

from launcher.config.rule import Rule
from launcher.config.schema import Run
from launcher.config.slurm_time import slurm_seconds

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What torchrun tells each worker, and what the shell needs as it is.
_TAKEN = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "BASHOPTS", "SHELLOPTS",
    "EUID", "UID", "PPID",
}  # fmt: skip
_SECRET = re.compile(
    r"(.*_)?(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|PRIVATE_KEY|SECRET_KEY)",
    re.IGNORECASE,
)
# `NAME=value` in a line of bash; what is read from elsewhere ($...) is not written down.
_ASSIGNMENT = re.compile(r"""\b([A-Za-z_][A-Za-z0-9_]*)=["']?([^$`"'\s;])""")
_OPTION = re.compile(r"--[a-z][a-z-]*(=.*)?")
# Option of sbatch -> the key that sets it.
_OURS = {
    "job-name": "launch.job_name", "partition": "launch.partition", "account": "launch.account",
    "qos": "launch.qos", "time": "launch.time_limit", "constraint": "launch.constraint",
    "reservation": "launch.reservation", "nodelist": "launch.nodelist",
    "exclude": "launch.exclude", "nodes": "hardware.num_nodes",
    "cpus-per-task": "launch.cpus_per_task", "mem": "launch.mem", "gres": "launch.gres",
    "gpus": "hardware.gpus_per_node", "gpus-per-node": "hardware.gpus_per_node",
    "gpus-per-task": "hardware.gpus_per_node", "exclusive": "launch.exclusive",
    "signal": "launch.signal_seconds", "requeue": "launch.requeue",
    "no-requeue": "launch.requeue", "array": "-m", "output": "--run-dir", "error": "--run-dir",
    "chdir": "--run-dir", "ntasks": "parallelism", "ntasks-per-node": "parallelism",
    "ntasks-per-gpu": "parallelism", "open-mode": "nothing: logs are always appended",
    "export": "launch.env and launch.secrets", "export-file": "launch.env and launch.secrets",
    "wait": "--wait", "test-only": "--dry-run", "parsable": "nothing: the job's id is printed",
    "wrap": "nothing: the script is the launcher's", "quiet": "nothing",
}  # fmt: skip
_FILE_IMAGES = (".sif", ".sqsh")


def _time_limit(run: Run) -> str | None:
    limit = run.launch.time_limit
    if limit is not None and slurm_seconds(limit) is None:
        return "Slurm reads minutes, H:MM:SS or D-HH:MM:SS"
    return None


def _notice(run: Run) -> str | None:
    limit = slurm_seconds(run.launch.time_limit or "")
    if limit and run.launch.signal_seconds >= limit:
        return f"launch.time_limit is {limit} s, so the notice would come before the first step"
    return None


def _image(run: Run) -> str | None:
    launch = run.launch
    if launch.container is not None and not launch.image:
        return f"launch.container={launch.container} needs an image"
    if launch.container is None and launch.image is not None:
        return "an image needs launch.container, pyxis or apptainer"
    image = launch.image or ""
    if image.endswith(_FILE_IMAGES) and not image.startswith("/"):
        return "jobs start in another directory, so the file's path must be absolute"
    if image.startswith("-"):
        return "it would be read as an option"
    return None


def _container_keys(run: Run) -> str | None:
    launch = run.launch
    given = [key for key in ("mounts", "container_options") if getattr(launch, key)]
    if launch.container is None and given:
        return f"launch.{' and launch.'.join(given)} mean something inside a container only"
    return None


def _mounts(run: Run) -> str | None:
    for mount in run.launch.mounts:
        source, _, rest = mount.partition(":")
        inside, _, options = rest.partition(":")
        if "," in mount or not source.startswith("/") or not (inside or "/").startswith("/"):
            return f"{mount} is not /PATH, /PATH:/INSIDE or /PATH:/INSIDE:ro"
        if options not in ("", "ro", "rw"):
            return f"{mount} ends in neither ro nor rw"
    return None


def _container_options(run: Run) -> str | None:
    for option in run.launch.container_options:
        if not option.startswith("-"):
            return f"{option} is not an option; write each as one text, --key=value"
        wanted = ("--container-", "--no-container-")
        if run.launch.container == "pyxis" and not option.startswith(wanted):
            return f"{option} is none of Pyxis's, --container-NAME or --no-container-NAME"
    return None


def _env(run: Run) -> str | None:
    for name in run.launch.env:
        if not _NAME.fullmatch(str(name)):
            return f"{name} is no name of a variable"
        if name in _TAKEN or name.startswith(("SLURM_", "TORCHELASTIC_")):
            return f"{name} is set for every process by those who start it"
        if _SECRET.fullmatch(name):
            return f"{name} looks like a secret; launch.secrets passes it unwritten"
        if name in run.launch.secrets:
            return f"{name} is among launch.secrets, too"
    return None


def _secrets(run: Run) -> str | None:
    for name in run.launch.secrets:
        if not _NAME.fullmatch(name):
            return f"{_hidden(name)} is no name of a variable; values are never given"
    return None


def _hidden(text: str) -> str:
    """Only the part before `=`: what is behind it may be the secret itself."""
    name, sign, _ = text.partition("=")
    return f"{name}=..." if sign else text


def _setup(run: Run) -> str | None:
    for line in run.launch.setup:
        for name, _ in _ASSIGNMENT.findall(line):
            if _SECRET.fullmatch(name):
                return f"{name} looks like a secret; launch.secrets passes it unwritten"
    return None


def _environments(run: Run) -> str | None:
    if run.launch.conda is not None and run.launch.venv is not None:
        return f"one environment is activated, and launch.venv={run.launch.venv} is another"
    return None


def _gres(run: Run) -> str | None:
    gres, launch = run.launch.gres, run.launch
    if gres is None or gres == "none":
        return None
    if launch.gpu_type is not None:
        return f"launch.gpu_type={launch.gpu_type} would have no effect beside it"
    wanted = run.hardware.gpus_per_node
    counts = [int(part) for part in re.findall(r"gpu(?::[^:,]+)?:([0-9]+)(?=[,(]|$)", gres)]
    if run.hardware.device == "cuda" and wanted and sum(counts) != wanted:
        return f"it asks for {sum(counts)} GPUs per node, and hardware.gpus_per_node={wanted}"
    return None


def _gres_candidates(run: Run) -> tuple[str, ...]:
    count = run.hardware.gpus_per_node
    return (f"gpu:{count}", "none") if count else ("none",)


def _options(run: Run) -> str | None:
    for option in run.launch.sbatch_options:
        if not _OPTION.fullmatch(option):
            return f"{option} is not one option of sbatch in its long form, --key or --key=value"
        key = option.removeprefix("--").partition("=")[0]
        if key in _OURS:
            return f"--{key} is set by {_OURS[key]}"
    return None


def _follow_ups(run: Run) -> str | None:
    if run.launch.follow_ups and run.launch.requeue:
        return "a job that is requeued continues itself, and a follow-up would run beside it"
    return None


LAUNCH_RULES = (
    Rule(
        id="time-limit-readable",
        field="launch.time_limit",
        says="time_limit is a Slurm time as text",
        why="Slurm takes a bare number for minutes and refuses the rest only after submission.",
        broken=_time_limit,
        candidates=lambda run: ("12:00:00", "1-00:00:00"),
        fix="launch.time_limit='\"12:00:00\"'",
    ),
    Rule(
        id="notice-within-time-limit",
        field="launch.signal_seconds",
        says="signal_seconds is shorter than the time limit",
        why="The notice would come at once, and the job would do nothing but save.",
        broken=_notice,
        candidates=lambda run: (max(1, (slurm_seconds(run.launch.time_limit or "") or 120) // 4),),
    ),
    Rule(
        id="container-has-image",
        field="launch.image",
        says="a container has an image, an image a container, and a file an absolute path",
        why="The job would fail on its first node, after its time in the queue.",
        broken=_image,
        fix="launch.container=apptainer launch.image=/images/pytorch.sif",
    ),
    Rule(
        id="container-named",
        field="launch.container",
        says="mounts and container_options go with a container",
        why="They would be ignored.",
        broken=_container_keys,
        fix="launch.container=apptainer launch.image=/images/pytorch.sif",
    ),
    Rule(
        id="mounts-readable",
        field="launch.mounts",
        says="a mount is /PATH, /PATH:/INSIDE or /PATH:/INSIDE:ro, without commas",
        why="Pyxis and Apptainer separate mounts by commas and their parts by colons.",
        broken=_mounts,
        candidates=lambda run: ((), ("/data",)),
        fix="launch.mounts=[/data]",
    ),
    Rule(
        id="container-options-readable",
        field="launch.container_options",
        says="container_options are options of srun for Pyxis, of apptainer exec for Apptainer",
        why="Another word would be taken for the image or for the command.",
        broken=_container_options,
        candidates=lambda run: ((),),
    ),
    Rule(
        id="env-names",
        field="launch.env",
        says="env has names of variables that are free, and nothing secret",
        why="Its values stand in run.yaml and in scripts. launch.secrets passes variables by name.",
        broken=_env,
        candidates=lambda run: ({},),
    ),
    Rule(
        id="secrets-by-name",
        field="launch.secrets",
        says="secrets are names of variables, without values",
        why="Values are never written.",
        broken=_secrets,
        fix="launch.secrets=[WANDB_API_KEY]",
    ),
    Rule(
        id="no-secret-in-setup",
        field="launch.setup",
        says="no line of setup gives a secret its value",
        why="The lines stand in run.yaml and in the script; one that reads a file is fine.",
        broken=_setup,
        candidates=lambda run: ((),),
    ),
    Rule(
        id="one-environment",
        field="launch.conda",
        says="conda or venv is given, not both",
        why="The second one would hide the first.",
        broken=_environments,
        candidates=lambda run: (None,),
    ),
    Rule(
        id="gres-has-gpus",
        field="launch.gres",
        says="gres asks for the GPUs that the plan uses",
        why="Workers without a GPU of their own would fail, or idle GPUs be paid for.",
        broken=_gres,
        candidates=_gres_candidates,
    ),
    Rule(
        id="sbatch-options-free",
        field="launch.sbatch_options",
        says="sbatch_options are long options that no other key sets",
        why="Of two values for one option the last one would win in silence.",
        broken=_options,
        candidates=lambda run: ((),),
    ),
    Rule(
        id="follow-ups-without-requeue",
        field="launch.follow_ups",
        says="follow_ups go with requeue=false",
        why="Two jobs would work on one run.",
        broken=_follow_ups,
        candidates=lambda run: (0,),
        fix="launch.requeue=false",
    ),
)
