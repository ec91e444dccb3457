"""What a job asks the queue for: the #SBATCH lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from launcher.plan.records import Plan

Option = tuple[str, str | None]
"""Name without dashes, and its value; None: an option that takes none."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=\[\]-]+")


def header_options(plan: Plan, logs: Path, name: str) -> list[Option]:
    """Options of sbatch in the order in which they are read best; open ones are left out.

    Args:
        plan: what runs.
        logs: folder of the job's log.
        name: of the job where launch.job_name is open.

    """
    launch = plan.run.launch
    named: list[Option] = [
        ("job-name", launch.job_name or name),
        ("partition", launch.partition),
        ("account", launch.account),
        ("qos", launch.qos),
        ("time", launch.time_limit),
        ("constraint", launch.constraint),
        ("reservation", launch.reservation),
        ("nodelist", launch.nodelist),
        ("exclude", launch.exclude),
        ("nodes", str(plan.layout.nodes)),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", str(launch.cpus_per_task) if launch.cpus_per_task else None),
        ("mem", launch.mem),
    ]
    options = [option for option in named if option[1] is not None]
    options += _gpus(plan)
    if launch.exclusive:
        options.append(("exclusive", None))
    options += [
        # sbatch(1): %j is the job's id, and %% a per cent sign.
        ("output", str(logs).replace("%", "%%") + "/slurm-%j.log"),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{launch.signal_seconds}"),
        ("requeue" if launch.requeue else "no-requeue", None),
    ]
    for line in launch.sbatch_options:
        key, sign, value = line.removeprefix("--").partition("=")
        options.append((key, value if sign else None))
    return options


def render_header(options: Sequence[Option]) -> str:
    """The #SBATCH lines."""
    return "\n".join(
        f"#SBATCH --{key}" + ("" if value is None else f"={quote_option(value)}")
        for key, value in options
    )


def quote_option(value: str) -> str:
    r"""A value as sbatch reads it in a script: its quotes are not the shell's.

    sbatch takes a backslash for an escape everywhere, in single quotes too.
    quote_option('a"b') -> '"a\"b"'
    """
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _gpus(plan: Plan) -> list[Option]:
    launch, count = plan.run.launch, plan.layout.gpus_per_node
    if plan.run.hardware.device != "cuda" and launch.gres is None:
        return []  # Workers compute on the CPU.
    if launch.gres is not None:
        return [] if launch.gres == "none" else [("gres", launch.gres)]
    return [("gpus-per-node", f"{launch.gpu_type}:{count}" if launch.gpu_type else str(count))]
