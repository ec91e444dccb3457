"""How long `launch search` takes as a whole process, beside Python importing Hydra alone.

python benchmarks/search_latency.py
"""

from __future__ import annotations

import subprocess
import sys

from common import machine, report, rounds_argument, time_in_turn

PLANS = {
    "launch search, 70B on 64 GPUs": ["hardware=h100x64", "model=llama3_70b"],
    "launch search, 405B on 16,384 GPUs": ["hardware=h100x16384", "model=llama3_405b"],
}
CALL = "import sys; from launcher.__main__ import main; sys.exit(main())"


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    rounds = rounds_argument(str(__doc__), default=15)
    contestants = {
        name: lambda words=words: run("-c", CALL, "search", *words) for name, words in PLANS.items()
    }
    contestants["import hydra and pydantic, no more"] = lambda: run("-c", "import hydra, pydantic")
    seconds = time_in_turn(contestants, rounds)
    report(f"whole process, wall time; {machine()}", seconds, ours="launch search, 70B on 64 GPUs")


if __name__ == "__main__":
    main()
