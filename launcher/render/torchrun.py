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
    layout = plan.layout
    lines = ["#!/usr/bin/env bash", f"# {layout.world_size} workers of this run on one machine."]
    if layout.nodes > 1:
        lines[1:] = _EVERY_NODE.format(nodes=layout.nodes).splitlines()
    return "\n".join(
        [
            *lines,
            "set -euo pipefail",
            *_exports(worker_environment(plan, cores)),
            *_IGNORE_USR1.splitlines(),
            "exec " + " \\\n    ".join(_words(plan, run_dir, python, module)),
            "",
        ]
    )


_IGNORE_USR1 = """\
# USR1 asks the workers to save and end. They answer it; torchrun, which would die of it, must not.
trap '' USR1"""

_EVERY_NODE = """\
# Run this on each of the {nodes} nodes, which must all see the run directory, with HEAD_NODE set to
# the name of one of them and HEAD_PORT to a port that is free there."""


def _words(plan: Plan, run_dir: Path, python: str, module: str) -> list[str]:
    """The words of torchrun's command, quoted, those that belong together on one line."""
    # On one machine the kernel chooses the port (0).
    endpoint = "127.0.0.1:0"
    if plan.layout.nodes > 1:
        endpoint = '"${HEAD_NODE:?}:${HEAD_PORT:?}"'
    return [
        f"{shlex.quote(python)} -m torch.distributed.run",
        f"--nnodes={plan.layout.nodes}",
        f"--nproc-per-node={plan.layout.gpus_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        "--max-restarts=0",
        f"--module {module} {shlex.quote(str(run_dir))}",
    ]


def _exports(variables: Sequence[Variable]) -> list[str]:
    return [
        line
        for variable in variables
        for line in (f"# {variable.why}", f"export {variable.name}={shlex.quote(variable.value)}")
    ]
