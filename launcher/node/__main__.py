"""`python -m launcher.node start|agent|end RUN_DIR`: what the job's script calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import EXIT_INVALID_CONFIG, LaunchError
from launcher.node.lifeline import HELD
from launcher.node.place import read_place

_USAGE = (
    "usage: python -m launcher.node start RUN_DIR | agent RUN_DIR [NUMBER OF THE HOST] | "
    "end RUN_DIR EXIT_CODE"
)


def main(words: Sequence[str]) -> int:
    """Run one of the three verbs; the exit code."""
    try:
        return _run(*words)
    except LaunchError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except TypeError:
        if len(words) > 1:
            raise
        return _refuse()


def _run(verb: str, run_dir: str, *words: str) -> int:
    if verb == "agent":
        return _agent(Path(run_dir), list(words))
    if len(words) > (verb == "end"):
        return _refuse()
    place = read_place(Path(run_dir))
    if verb == "start":
        from launcher.node.start import begin

        return begin(place)
    if verb == "end":
        from launcher.node.end import finish

        # What the script has heard from the queue: USR1, TERM or nothing.
        status = int(words[0]) if words else 1
        return finish(place, status, bool(os.environ.get("LAUNCH_ASKED")))
    return _refuse()


def _refuse() -> int:
    print(_USAGE, file=sys.stderr)
    return EXIT_INVALID_CONFIG


def _agent(run_dir: Path, words: list[str]) -> int:
    """Of a node of a Slurm job, or of a plain host: then its number may be given."""
    from launcher.node.agent import run_agent
    from launcher.node.hosts import plain_place
    from launcher.node.plain import join

    is_held = HELD in words
    numbers = [word for word in words if word != HELD]
    if len(numbers) > 1 or not all(word.isdecimal() for word in numbers):
        return _refuse()
    place = plain_place(run_dir, int(numbers[0]) if numbers else None)
    return run_agent(read_place(run_dir)) if place is None else join(place, is_held)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
