"""How long `launch search` takes as a whole process, beside Python importing Hydra alone.

python benchmarks/search_latency.py
"""

from __future__ import annotations

from whole_process import compare

SEARCHES = {
    "launch search, 70B on 64 GPUs": ["search", "hardware=h100x64", "model=llama3_70b"],
    "launch search, 8B on 64 GPUs": ["search", "hardware=h100x64", "model=llama3_8b"],
    "launch search, 405B on 16,384 GPUs": ["search", "hardware=h100x16384", "model=llama3_405b"],
}

if __name__ == "__main__":
    compare(str(__doc__), SEARCHES)
