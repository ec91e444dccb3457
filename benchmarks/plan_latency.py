"""How long `launch plan` takes as a whole process, beside Python importing Hydra alone.

python benchmarks/plan_latency.py
"""

from __future__ import annotations

import subprocess
import sys

from common import machine, report, rounds_argument, time_in_turn

PLANS = {
    "launch plan, 70B on 64 GPUs": ["parallelism=3d", "hardware=h100x64", "model=llama3_70b"],
    "launch plan, 405B on 16,384 GPUs": [
        "parallelism=3d", "hardware=h100x16384", "model=llama3_405b", "parallelism.tp=8",
        "parallelism.pp=16", "train.num_microbatches=512",
    ],
    "launch plan (the quickstart)": [],
}  # fmt: skip
CALL = "import sys; from launcher.cli import main; sys.exit(main(sys.argv[1:]))"


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    rounds = rounds_argument(str(__doc__), default=15)
    contestants = {
        name: lambda words=words: run("-c", CALL, "plan", *words) for name, words in PLANS.items()
    }
    contestants["import hydra and pydantic, no more"] = lambda: run("-c", "import hydra, pydantic")
    seconds = time_in_turn(contestants, rounds)
    report(f"whole process, wall time; {machine()}", seconds, ours="launch plan, 70B on 64 GPUs")


if __name__ == "__main__":
    main()
