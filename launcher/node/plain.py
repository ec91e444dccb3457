"""One host of a plain list, from its start to its end: no queue looks after it."""

from __future__ import annotations

import os
import signal
import sys

from launcher.config.run_yaml import read_run
from launcher.errors import EXIT_INTERRUPTED, LaunchError, RunFailed
from launcher.node.agent import run_agent
from launcher.node.end import finish
from launcher.node.lifeline import Lifeline
from launcher.node.place import Place
from launcher.node.records import read_record
from launcher.node.start import begin


def join(place: Place, is_held: bool) -> int:
    """Take part in a run; the exit code. The first host also writes its beginning and its end.

    With `is_held`, standard input says what to do, and its end means the end.
    """
    if (end := read_record(place.start.end)) is not None:
        way_on = f"`launch resume {place.files.root}` continues it"
        print(f"job {place.job_id} is over ({end.get('status')}); {way_on}", flush=True)
        return 0
    place.start.root.mkdir(parents=True, exist_ok=True)
    lifeline = Lifeline(place.files, sys.stdin.buffer if is_held else None)
    code = EXIT_INTERRUPTED
    try:
        lifeline.hold()
        code = _take_part(place)
    except KeyboardInterrupt:
        # Again it is not heard: what is left takes a moment.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"host {place.node}: ended{lifeline.why}", file=sys.stderr, flush=True)
    except LaunchError as error:
        print(f"host {place.node}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    lifeline.let_go()
    if place.index == 0 and place.start.nodes.exists():
        code = finish(place, code, lifeline.is_asked, lifeline.is_cut_off) or code
    return code


def _take_part(place: Place) -> int:
    _require_secrets(place)
    if place.index == 0 and (code := begin(place)) != 0:
        return code
    return run_agent(place)


def _require_secrets(place: Place) -> None:
    names = read_run(place.files.run).launch.secrets
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise RunFailed(f"{', '.join(missing)} of launch.secrets is not set here")
