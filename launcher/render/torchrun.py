"""The command line of torchrun on one machine, as a script that can be read and run again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from launcher.plan.records import Plan
from launcher.render.environment import Variable, worker_environment

WORKER = "launcher.runtime.worker"


def render_command(plan: Plan, run_dir: Path, python: str, cores: int, module: str = WORKER) -> str:
    """`command.sh`: the environment with its reasons, then torchrun.

    Args:
        plan: what runs.
        run_dir: absolute path of the run directory.
        python: interpreter that has the launcher installed.
        cores: cores of this machine.
        module: what every rank runs.

    """
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {plan.layout.world_size} workers of this run on one machine.",
            "set -euo pipefail",
            *_exports(worker_environment(plan, cores)),
            "exec " + " \\\n    ".join(_words(torchrun_arguments(plan, run_dir, python, module))),
            "",
        ]
    )


def torchrun_arguments(plan: Plan, run_dir: Path, python: str, module: str) -> list[str]:
    """Argument vector of a single-node torchrun; the port is chosen by the kernel (port 0)."""
    return [
        python,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        f"--nproc-per-node={plan.layout.gpus_per_node}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--max-restarts=0",
        "--module",
        module,
        str(run_dir),
    ]


def _exports(variables: Sequence[Variable]) -> list[str]:
    return [
        line
        for variable in variables
        for line in (f"# {variable.why}", f"export {variable.name}={shlex.quote(variable.value)}")
    ]


def _words(arguments: Sequence[str]) -> list[str]:
    """Quoted arguments, the interpreter with its module on one line."""
    quoted = [shlex.quote(argument) for argument in arguments]
    return [" ".join(quoted[:3]), *quoted[3:-3], " ".join(quoted[-3:])]
