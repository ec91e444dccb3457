"""How long `launch plan` takes as a whole process, beside Python importing Hydra alone.

python benchmarks/plan_latency.py
"""

from __future__ import annotations

from whole_process import compare

PLANS = {
    "launch plan, 70B on 64 GPUs": [
        "plan", "parallelism=3d", "hardware=h100x64", "model=llama3_70b",
    ],
    "launch plan, 405B on 16,384 GPUs": [
        "plan", "parallelism=3d", "hardware=h100x16384", "model=llama3_405b", "parallelism.tp=8",
        "parallelism.pp=16", "train.num_microbatches=512",
    ],
    "launch plan (the quickstart)": ["plan"],
}  # fmt: skip

if __name__ == "__main__":
    compare(str(__doc__), PLANS)
