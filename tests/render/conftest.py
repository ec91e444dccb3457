"""Scripts run among recorders in the place of the programs that they call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.render.shell import RECORDER


@pytest.fixture
def shell(tmp_path):
    """Runs a script among recorders; returns the recorded calls."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python", "srun", "apptainer", "mpirun"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    record = tmp_path / "record"

    def run(script: Path, **environment: str) -> list[list[str]]:
        subprocess.run(["bash", "-n", str(script)], check=True)
        done = subprocess.run(
            ["bash", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record),
                 "HOME": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
                 **environment},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert not list(tmp_path.rglob("PWNED")), "text was executed"
        return [line.split("\037") for line in record.read_text().splitlines()]

    return run
