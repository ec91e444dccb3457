"""What nvidia-smi says of a node's GPUs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_PATIENCE_S = 30.0
"""It answers in a second; where it takes longer, the driver is stuck."""
_FIELDS = ("index", "driver_version", "clocks.max.sm", "ecc.errors.uncorrected.volatile.total")
# Drivers from 535 on call them events; older ones know the other name only.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# nvmlClocksEventReasons of nvml.h. Others are ordinary: idle, power cap, clocks set by the site.
SLOWED_BY = {
    0x08: "a hardware slowdown",
    0x20: "its temperature (by the driver)",
    0x40: "its temperature (by the hardware)",
    0x80: "the power supply (power brake)",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; None is what the driver does not tell."""

    index: int
    driver: str
    max_clock_mhz: float | None
    """The highest clock that it may take now."""
    ecc_errors: int | None
    """Uncorrectable ones since the driver was loaded."""
    slowed_by: int | None
    """Bits of SLOWED_BY and others."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """All GPUs of a node."""

    found: tuple[Gpu, ...] = ()
    problem: str = ""
    """Why nvidia-smi could not say."""


def ask_gpus() -> Gpus | None:
    """Ask nvidia-smi; None where there is none, as with AMD's GPUs and in some containers."""
    if shutil.which("nvidia-smi") is None:
        return None
    said = ""
    for reasons in ((_REASONS[0],), (_REASONS[1],), ()):
        code, said = _ask((*_FIELDS, *reasons))
        if code == 0:
            return Gpus(found=read_gpus(said))
        if "not a valid field" not in said:
            break
    lines = said.strip().splitlines() or ["no answer"]
    return Gpus(problem=lines[0][:300])


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Lines of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) < len(_FIELDS) or not words[0].isdecimal():
            continue
        errors, slowed = _number(words[3]), _number(words[4]) if len(words) > 4 else None
        found.append(
            Gpu(
                index=int(words[0]),
                driver=words[1],
                max_clock_mhz=_number(words[2]),
                ecc_errors=None if errors is None else int(errors),
                slowed_by=None if slowed is None else int(slowed),
            )
        )
    return tuple(found)


def _ask(fields: Sequence[str]) -> tuple[int, str]:
    words = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return 1, str(error)
    except subprocess.TimeoutExpired:
        return 1, f"nvidia-smi has not answered within {_PATIENCE_S:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def _number(word: str) -> float | None:
    """Of `1980`, `0x0000000000000001` or `[N/A]`."""
    try:
        return float(int(word, 16)) if word.startswith("0x") else float(word)
    except ValueError:
        return None
