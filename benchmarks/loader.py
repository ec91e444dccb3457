"""Our loader in one process beside a plain copy of the same bytes; start-up and resident memory.

python benchmarks/loader.py [--tokens 1e9]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

from launcher.data.store import open_store
from launcher.data.store_info import DOCUMENTS_FILE, STORE_FILE, TOKENS_FILE
from launcher.runtime.data import open_datasets
from launcher.runtime.progress import Progress

NEED = 1.2e4
"""Tokens/s that one H100 takes at 50 % MFU of an 8B model."""
DOCUMENT = 1000  # tokens


def make_big_store(folder: Path, num_tokens: int) -> None:
    """Random tokens in documents of a fixed length, written as fast as the disk takes them."""
    folder.mkdir()
    block = np.random.default_rng(1).integers(0, 50_000, 1 << 24, dtype=np.uint16)
    with (folder / TOKENS_FILE).open("wb") as stream:
        for start in range(0, num_tokens, len(block)):
            stream.write(block[: num_tokens - start].tobytes())
    borders = np.arange(0, num_tokens + 1, DOCUMENT, dtype="<u8")
    borders.tofile(folder / DOCUMENTS_FILE)
    document = {
        "format": "launch-token-store", "version": 1, "dtype": "uint16",
        "num_tokens": num_tokens, "num_documents": len(borders) - 1, "largest_token": 49_999,
        "tokenizer": {"name": "made", "sha256": "", "vocab_size": 50_000, "end_token": 0},
        "files": {}, "bad_lines": 0,
    }  # fmt: skip
    (folder / STORE_FILE).write_text(json.dumps(document))


def open_run(folder: Path, packing: str) -> tuple[Any, Any]:
    from decoder import make_layout, make_run

    run, layout = make_run(), make_layout(dp=1, num_microbatches=8)
    data = run.data.model_copy(
        update={"kind": "store", "path": str(folder), "packing": packing, "name": "store"}
    )
    model = run.model.model_copy(update={"vocab_size": 50_000})
    run = run.model_copy(update={"data": data, "model": model})
    import dataclasses

    layout = dataclasses.replace(
        layout, sequence_length=8192, micro_batch_size=1, num_microbatches=8, global_batch_size=8
    )
    return open_datasets(run, layout, folder, False, lambda: None).train, layout


def time_loader(folder: Path, packing: str, num_steps: int) -> tuple[float, int]:
    """Seconds and tokens of some steps, microbatches as training gets them, nothing read ahead."""
    batches, layout = open_run(folder, packing)
    batches._thread = None  # the time of reading itself, not of waiting for it
    started = time.perf_counter()
    for step in range(num_steps):
        place = Progress(step=step, consumed_samples=8 * step)
        batches.step_samples(place, layout, 0)
    return time.perf_counter() - started, num_steps * 8 * 8192


def time_copy(folder: Path, num_steps: int) -> float:
    """Seconds of copying the same windows out of the map, in the same order, and no more."""
    batches, _ = open_run(folder, "concatenate")
    starts = [int(start) for start in batches.samples.starts(np.arange(8 * num_steps))]
    tokens = open_store(folder)[1].tokens
    started = time.perf_counter()
    for start in starts:
        np.array(tokens[start : start + 8193])
    return time.perf_counter() - started


def child(folder: str, num_steps: str) -> None:
    """Start-up and peak memory in a process of its own."""
    open_run  # noqa: B018  (imports are not part of it)
    started = time.perf_counter()
    batches, layout = open_run(Path(folder), "documents")
    batches.step_samples(Progress(), layout, 0)
    startup = time.perf_counter() - started
    before = peak_resident()
    for step in range(int(num_steps)):
        batches.step_samples(Progress(step=step, consumed_samples=8 * step), layout, 0)
    print(json.dumps([startup, before, peak_resident()]))


def peak_resident() -> float:
    """MiB; unlike getrusage's it does not start from the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e9, help="size of the store")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    size, num_steps = int(chosen.tokens), 200
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        make_big_store(folder, size)
        print(f"{size:,} tokens, sequences of 8192; {machine()}")
        seconds: dict[str, list[float]] = {"copy": [], "concatenate": [], "documents": []}
        for turn in range(chosen.rounds + 1):
            tokens = num_steps * 8 * 8192
            times = {"copy": time_copy(folder, num_steps)}
            for packing in ("concatenate", "documents"):
                times[packing] = time_loader(folder, packing, num_steps)[0]
            if turn:
                for name, value in times.items():
                    seconds[name].append(value)
        copy = statistics.median(seconds["copy"])
        for name, found in seconds.items():
            median = statistics.median(found)
            rate = tokens / median
            print(
                f"  {name:12} {rate / 1e6:8.1f} M tokens/s  {copy / median:6.3f} of the copy"
                f"  {rate / NEED:8.0f} x {NEED:.0f}"
            )
        for steps in (100, 1000, 10_000):
            answer = subprocess.run(
                [sys.executable, __file__, "child", str(folder), str(steps)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            startup, before, after = json.loads(answer.stdout)
            print(
                f"  open and first step {startup * 1e3:.0f} ms; peak resident {before:.0f} MiB, "
                f"after {steps:,} more steps {after:.0f} MiB"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main()
