"""Calls Slurm's commands with nothing of another job in their environment."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from launcher.render.firewall import clean_environment

PATIENCE_S = 60.0
NOT_FOUND = 127
NO_ANSWER = 124


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command said."""

    code: int
    """Its exit code; NOT_FOUND without the program, NO_ANSWER where it did not end in time."""
    out: str = ""
    error: str = ""

    @property
    def reason(self) -> str:
        """The line of standard error that says most, without the command's name."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("Try ")]
        if not lines:
            return f"exit code {self.code}"
        line = lines[-1]
        for head in ("sbatch: error: ", "sbatch: ", "allocation failure: ", "error: "):
            line = line.removeprefix(head)
        return line.rstrip(".")


def ask(*words: str, text: str | None = None, timeout_s: float = PATIENCE_S) -> Said:
    """Run a command; `text` is its standard input."""
    try:
        done = subprocess.run(
            words,
            env=clean_environment(os.environ),
            input=text or "",
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        return Said(code=NOT_FOUND, error=f"no {words[0]} on this machine")
    except subprocess.TimeoutExpired:
        return Said(code=NO_ANSWER, error=f"{words[0]} did not answer within {timeout_s:.0f} s")
    except OSError as error:
        return Said(code=NOT_FOUND, error=f"{words[0]}: {error.strerror}")
    return Said(code=done.returncode, out=done.stdout, error=done.stderr)
