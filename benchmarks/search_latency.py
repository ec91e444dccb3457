"""How long `launch search` takes as a whole process, beside Python importing Hydra alone.

python benchmarks/search_latency.py
"""

from __future__ import annotations

from whole_process import compare

SEARCHES = {
    "launch search, 70B on 64 GPUs": ["search", "hardware=h100x64", "model=llama3_70b"],
    "launch search, 8B on 64 GPUs": ["search", "hardware=h100x64", "model=llama3_8b"],
    "launch search, 405B on 16,384 GPUs": ["search", "hardware=h100x16384", "model=llama3_405b"],
    # Those that take longest, and one in which nothing fits.
    "launch search, Mixtral 8x22B on 64 GPUs": [
        "search", "hardware=h100x64", "model=mixtral_8x22b",
    ],
    "launch search, OLMoE on 64 GPUs": ["search", "hardware=h100x64", "model=olmoe_1b_7b"],
    "launch search, DeepSeek-V3 on 64 GPUs": ["search", "hardware=h100x64", "model=deepseek_v3"],
    "launch search, DeepSeek-V3 on 16,384 GPUs": [
        "search", "hardware=h100x16384", "model=deepseek_v3",
    ],
    "launch search, Qwen3 235B on 16,384 GPUs": [
        "search", "hardware=h100x16384", "model=qwen3_235b_a22b",
    ],
}  # fmt: skip

if __name__ == "__main__":
    compare(str(__doc__), SEARCHES)
