"""Run the measurements of `launch calibrate` in processes of their own and keep their table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launcher.config.local_hardware import LocalMachine, core_peak_flops
from launcher.errors import RunFailed

LIMIT_S = 900


def calibrate(machine: LocalMachine, path: Path) -> tuple[str, str | None]:
    """Write the table to `path`; it, and why exchanges between ranks are not in it, if so.

    RunFailed where measuring kernels or writing fails.
    """
    peak, note = repr(core_peak_flops(machine)), None
    try:
        table = _measure("calibrate", peak)
    except _Failed as error:
        raise RunFailed(f"measuring failed [calibrate]: {error}") from None
    try:
        table += _measure("calibrate_links", peak, str(machine.cores))
    except _Failed as error:  # kernels alone are worth having
        note = str(error)
    try:
        path.write_text(table, encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"calibrate {path} [calibrate]: {error}") from None
    return table, note


class _Failed(Exception):
    """A measurement did not end well."""


def _measure(module: str, *words: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"launcher.runtime.{module}", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=LIMIT_S, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or ["no message"]
        raise _Failed(last[0]) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Failed(str(error)) from None
    return done.stdout
