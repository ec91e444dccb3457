"""Run the measurements of `launch calibrate` in a process of their own and keep their table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launcher.config.local_hardware import LocalMachine, core_peak_flops
from launcher.errors import RunFailed

LIMIT_S = 900


def calibrate(machine: LocalMachine, path: Path) -> str:
    """Write the table to `path` and return it; RunFailed where measuring or writing fails."""
    peak = core_peak_flops(machine)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launcher.runtime.calibrate", repr(peak)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=LIMIT_S, check=True,
        )  # fmt: skip
        path.write_text(done.stdout, encoding="utf-8")
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RunFailed(f"measuring failed [calibrate]: {last[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"calibrate {path} [calibrate]: {error}") from None
    return done.stdout
