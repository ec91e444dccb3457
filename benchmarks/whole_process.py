"""How long commands take as whole processes, beside Python importing Hydra and pydantic alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from common import machine, report, rounds_argument, time_in_turn

from launcher.errors import EXIT_DOES_NOT_FIT, EXIT_DONE

CALL = "import sys; from launcher.__main__ import main; sys.exit(main())"


def compare(description: str, commands: Mapping[str, Sequence[str]]) -> None:
    """Time the command lines in turn and report them; the first one is the one to compare with."""
    rounds = rounds_argument(description, default=15)
    contestants = {name: lambda words=words: _run(CALL, *words) for name, words in commands.items()}
    contestants["import hydra and pydantic, no more"] = lambda: _run("import hydra, pydantic")
    seconds = time_in_turn(contestants, rounds)
    report(f"whole process, wall time; {machine()}", seconds, ours=next(iter(commands)))


def _run(program: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode not in (EXIT_DONE, EXIT_DOES_NOT_FIT):
        sys.exit(done.stderr.decode())
