"""What `launch plan` says of layouts on this machine's processors, beside what they then take.

    python benchmarks/local_layouts.py [--kernels kernels.csv] [--steps 14]

Whole runs of `launch`, one after another: two models of the quickstart's kind in ten layouts each.
`--kernels`: a table of `launch calibrate`; both plans are then shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine

LAUNCH = "import sys; from launcher.__main__ import main; sys.exit(main())"
MODELS: dict[str, list[str]] = {
    "quickstart's": [],
    "hidden 512": [
        "model.hidden_size=512", "model.num_layers=6", "model.num_heads=8",
        "model.ffn_hidden_size=1408", "train.micro_batch_size=2",
    ],
}  # fmt: skip
LAYOUTS: dict[str, dict[str, int]] = {
    "1": {}, "dp=2": {"dp": 2}, "dp=4": {"dp": 4}, "dp=2, ZeRO-3": {"dp": 2, "zero_stage": 3},
    "tp=2": {"tp": 2}, "tp=4": {"tp": 4}, "cp=2": {"cp": 2}, "pp=2": {"pp": 2}, "pp=4": {"pp": 4},
    "tp=2, pp=2": {"tp": 2, "pp": 2},
}  # fmt: skip


def main() -> None:
    """Print one line per model and layout, then the mean error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels")
    parser.add_argument("--steps", type=int, default=14)
    given = parser.parse_args()
    tables = [[]] + ([[f"hardware.kernels={Path(given.kernels).absolute()}"]] * bool(given.kernels))
    errors: list[list[float]] = [[] for _ in tables]
    print(f"whole runs of {given.steps} steps; {machine()}")
    for model, words in MODELS.items():
        for layout, keys in LAYOUTS.items():
            degrees = {"tp": 1, "cp": 1, "pp": 1, "dp": 1} | keys
            typed = words + [f"parallelism.{key}={value}" for key, value in degrees.items()]
            measured_s = _run([*typed, f"train.steps={given.steps}"])["measured"]["step_s"]
            line = f"{model:13} {layout:13} {1e3 * measured_s:8.0f} ms"
            for table, found in zip(tables, errors, strict=True):
                predicted_s = json.loads(_launch(["plan", "--json", *typed, *table]))["time"][
                    "step_s"
                ]
                found.append(predicted_s / measured_s - 1)
                line += f"  {1e3 * predicted_s:8.0f} ms {found[-1]:+7.1%}"
            print(line, flush=True)
    for name, found in zip(("plan", "plan with the table"), errors, strict=False):
        mean = statistics.mean(abs(error) for error in found)
        print(f"{name}: mean error {mean:.1%}, {min(found):+.1%} to {max(found):+.1%}")


def _run(words: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        _launch([*words, "--run-dir", str(run)])
        document: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return document


def _launch(words: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
