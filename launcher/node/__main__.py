"""`python -m launcher.node start|agent|end RUN_DIR`: what the job's script calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import EXIT_INVALID_CONFIG, LaunchError
from launcher.node.place import read_place

_USAGE = "usage: python -m launcher.node start RUN_DIR | agent RUN_DIR | end RUN_DIR EXIT_CODE"


def main(words: Sequence[str]) -> int:
    """Run one of the three verbs; the exit code."""
    try:
        return _run(*words)
    except LaunchError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except TypeError:
        if len(words) in (2, 3):
            raise
        print(_USAGE, file=sys.stderr)
        return EXIT_INVALID_CONFIG


def _run(verb: str, run_dir: str, status: str = "1") -> int:
    place = read_place(Path(run_dir))
    if verb == "start":
        from launcher.node.start import begin

        return begin(place)
    if verb == "agent":
        from launcher.node.agent import run_agent

        return run_agent(place)
    if verb == "end":
        from launcher.node.end import finish

        # What the script has heard from the queue: USR1, TERM or nothing.
        return finish(place, int(status), bool(os.environ.get("LAUNCH_ASKED")))
    print(_USAGE, file=sys.stderr)
    return EXIT_INVALID_CONFIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
