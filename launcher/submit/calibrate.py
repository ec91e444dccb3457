"""Run the measurements of `launch calibrate` in processes of their own and keep their table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from launcher.config.kernel_table import read_kernels
from launcher.config.local_hardware import LocalMachine, core_peak_flops
from launcher.errors import RunFailed

LIMIT_S = 900
_RAISED = re.compile(r"^(?:\[rank\d+\]: )?(\w+(?:Error|Exception): .+)$", re.MULTILINE)
CPU_RANKS = (2, 4)


def calibrate(machine: LocalMachine, path: Path) -> tuple[str, str | None]:
    """Write the table to `path`; it, and why exchanges between ranks are not all in it, if so.

    RunFailed where measuring kernels or writing fails: an earlier table is then as it was.
    """
    peak = core_peak_flops(machine)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.csv"
        try:
            _measure(["-m", "launcher.runtime.calibrate", repr(peak), str(rows)])
        except _Failed as error:
            raise RunFailed(f"measuring failed [calibrate]: {error}") from None
        note = _measure_exchanges(machine, peak, rows)  # kernels alone are worth having
        table = rows.read_text(encoding="utf-8")
        try:
            read_kernels(rows, peak, is_cpu=table.splitlines()[1].startswith("cpu"))
            path.write_text(table, encoding="utf-8")
        except (ValueError, OSError) as error:
            raise RunFailed(f"calibrate {path} [calibrate]: {error}") from None
    return table, note


def group_sizes(num_gpus: int) -> tuple[int, ...]:
    """Ranks that are tried: of GPUs the powers of two that there are, of a CPU two and four."""
    if not num_gpus:
        return CPU_RANKS
    return tuple(2**power for power in range(1, num_gpus.bit_length()))


def _measure_exchanges(machine: LocalMachine, peak: float, rows: Path) -> str | None:
    """Add them to the rows, as many ranks as work; why no more, if so."""
    for size in group_sizes(len(machine.gpus)):
        try:
            _measure([
                "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={size}",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
                "--max-restarts=0", "--module", "launcher.runtime.calibrate_links", repr(peak),
                str(machine.cores), str(rows),
            ])  # fmt: skip
        except _Failed as error:
            return f"{size} ranks: {error}"
    return None


class _Failed(Exception):
    """A measurement did not end well."""


def _measure(words: list[str]) -> None:
    try:
        subprocess.run(
            [sys.executable, *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise _Failed(_reason(error.stderr)) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Failed(str(error)) from None


def _reason(said: str) -> str:
    """The first exception, before torchrun's summary; else the last line."""
    if found := _RAISED.search(said):
        return found[1]
    return (said.strip().splitlines() or ["no message"])[-1]
