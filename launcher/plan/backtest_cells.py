"""Cells of a table of measured runs as people write them: other names, units, marks for nothing.

`1,024`, `~512`, `16 (inferred)`, `32k`, `41.5 %`, `850 ms`, `5.1 ± 0.1`, `66.5 GiB`, `8x8` nodes,
`400 TFLOP/s/GPU` and `-` are read as what they mean; what cannot be read names its cell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

COLUMNS = (
    "id", "source", "source_url_or_repo_path", "model", "params_b", "layers", "hidden", "heads",
    "kv_heads", "ffn", "vocab", "seq", "gpu", "gpus", "gpus_per_node", "tp", "pp", "vpp", "cp",
    "ep", "dp", "zero_or_fsdp", "sp", "micro_batch", "global_batch", "recompute", "precision",
    "tflops_per_gpu", "tokens_per_s_per_gpu", "mfu", "step_time_s", "mem_gib", "notes",
)  # fmt: skip
"""Of a table; absent ones are empty cells."""

ALIASES = {
    "name": "id", "run": "id", "model_name": "model", "params": "params_b",
    "num_params": "params_b", "parameters": "params_b", "num_layers": "layers",
    "n_layers": "layers", "hidden_size": "hidden", "d_model": "hidden", "num_heads": "heads",
    "attention_heads": "heads", "n_heads": "heads", "num_kv_heads": "kv_heads",
    "num_query_groups": "kv_heads", "ffn_hidden_size": "ffn", "d_ff": "ffn", "vocab_size": "vocab",
    "seq_len": "seq", "sequence_length": "seq", "seq_length": "seq", "num_gpus": "gpus",
    "world_size": "gpus", "gpu_type": "gpu", "gpu_name": "gpu", "device": "gpu",
    "micro_batch_size": "micro_batch", "mbs": "micro_batch", "global_batch_size": "global_batch",
    "gbs": "global_batch", "zero": "zero_or_fsdp",
    "zero_stage": "zero_or_fsdp", "fsdp": "zero_or_fsdp", "sequence_parallel": "sp",
    "activation_checkpointing": "recompute", "recomputation": "recompute", "dtype": "precision",
    "tflops": "tflops_per_gpu",
    "tokens_per_second_per_gpu": "tokens_per_s_per_gpu", "step_time": "step_time_s",
    "step_time_ms": "step_time_s", "iteration_time_s": "step_time_s", "mem_gb": "mem_gib",
    "memory_gib": "mem_gib", "memory_gb": "mem_gib", "comment": "notes", "note": "notes",
    "virtual_pp": "vpp", "url": "source_url_or_repo_path",
    "accelerator": "gpu", "params_m": "params_b", "sharding": "zero_or_fsdp",
    "ac": "recompute", "activation_recompute": "recompute", "tgs": "tokens_per_s_per_gpu",
    **{f"{tokens}_{each}": "tokens_per_s_per_gpu"
       for tokens in ("tok_s", "tokens_s", "tokens_sec", "tokens_per_sec", "tokens_per_s")
       for each in ("gpu", "device", "per_gpu", "per_device")},
    **{f"{flops}_{each}": "tflops_per_gpu"
       for flops in ("tflops", "tflop_s", "tflops_s") for each in ("gpu", "device", "per_gpu")},
    **{f"{time}{unit}": "step_time_s"
       for time in ("iteration_time", "iter_time", "time_per_step", "time_per_iteration")
       for unit in ("", "_s", "_ms")},
    **{f"{memory}_{unit}": "mem_gib"
       for memory in ("mem", "memory", "peak_mem", "peak_memory", "max_mem", "max_memory")
       for unit in ("gb", "gib", "mb", "mib")},
    **{f"{word}_parallel{rest}": axis
       for word, axis in (("data", "dp"), ("tensor", "tp"), ("pipeline", "pp"), ("context", "cp"),
                          ("expert", "ep")) for rest in ("_size", "_degree")},
    **{f"{axis}_size": axis for axis in ("dp", "tp", "pp", "cp", "ep")},
}  # fmt: skip
"""Other names of columns, in lower case with underscores."""

UNIT_OF_COLUMN = {
    **{name: "ms" for name, column in ALIASES.items()
       if column == "step_time_s" and name.endswith("_ms")},
    **{name: name.rsplit("_", 1)[1].upper() for name, column in ALIASES.items()
       if column == "mem_gib" and not name.endswith("gib")},
    "params_m": "M",
}  # fmt: skip
"""Columns whose name says a unit that their cells do not."""

NOTHING = ("", "-", "--", "\u2013", "\u2014", "?", "n/a", "na", "null", "unknown", "tbd",
           "not stated", "not published", "unspecified")  # fmt: skip
"""Cells that say that nothing was published, in lower case."""

SCALES: dict[str, dict[str, float]] = {
    "step_time_s": {"": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 1e-3,
                    "msec": 1e-3, "milliseconds": 1e-3, "min": 60.0, "minutes": 60.0, "h": 3600.0},
    "mem_gib": {"": 1.0, "gib": 1.0, "mib": 2.0**-10, "tib": 2.0**10, "gb": 1e9 / 2**30,
                "mb": 1e6 / 2**30, "tb": 1e12 / 2**30, "g": 1.0},
    "params_b": {"": 1.0, "b": 1.0, "m": 1e-3, "t": 1e3, "billion": 1.0, "million": 1e-3,
                 "trillion": 1e3},
    "ffn": {"": 1.0, "k": 1e3},
    "tflops_per_gpu": {"": 1.0, "tflop/s": 1.0, "tflops/s": 1.0, "tflops": 1.0, "tflop": 1.0,
                       "pflop/s": 1e3, "pflops": 1e3},
    "tokens_per_s_per_gpu": {"": 1.0, "k": 1e3, "m": 1e6, "tokens/s": 1.0, "tok/s": 1.0, "tps": 1.0,
                             "k tokens/s": 1e3, "k tok/s": 1e3, "ktok/s": 1e3, "ktokens/s": 1e3},
    "mfu": {"": 1.0, "%": 0.01},
    "seq": {"": 1.0, "k": 2.0**10, "m": 2.0**20, "tokens": 1.0},
    "vocab": {"": 1.0, "k": 1e3},
}  # fmt: skip
"""Units that a column's cells may carry, in lower case."""

PLAIN = dict.fromkeys(("", "x", "gpus", "samples", "sequences", "seqs", "layers", "heads"), 1.0)
PLAIN["k"] = 1e3
"""Those of all other columns."""

PER_DEVICE = r"(?: ?/ ?| per )(?:gpu|device|gcd|die|card)s?$"
"""Behind a unit of a column that is per device."""

PER_STEP = r" ?/ ?(?:it(?:er(?:ation)?)?|step)$"
"""Behind a unit of a step."""

MEASURES = r"\b(?:max(?:imum)?|peak|allocated|reserved)\b"
"""Beside a figure of memory: of what it is one."""

SIMPLE = re.compile(r"[1-9]\d{0,14}(?:\.\d+)?")

NUMBER = re.compile(
    r"[~≈]?\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*([a-z/%]*(?: [a-z/]+)?)\s*[?*]?"
)


class BadRow(ValueError):
    """A cell of the row is broken; the message names it."""


class Unsupported(ValueError):
    """The row cannot be predicted; the message says why."""


def column_name(header: str) -> str:
    """The column that a header means; its own name where it means none."""
    plain = re.sub(r"[^a-z0-9]+", "_", header.strip().strip("\ufeff").lower()).strip("_")
    return plain if plain in COLUMNS else ALIASES.get(plain, header.strip())


def column_unit(header: str) -> str:
    """The unit that a header says and its cells need not."""
    return UNIT_OF_COLUMN.get(re.sub(r"[^a-z0-9]+", "_", header.strip().lower()).strip("_"), "")


def read_cells(row: Mapping[str, str | None]) -> dict[str, str]:
    """Every column, empty where the table has none or says that nothing is known."""
    cells = {column: " ".join((row.get(column) or "").split()) for column in COLUMNS}
    return {column: "" if text.lower() in NOTHING else text for column, text in cells.items()}


def read_number(cells: Mapping[str, str], name: str) -> float | None:
    """A positive number in the column's unit, or None where the cell is empty."""
    text = cells[name].lower()
    if not text:
        return None
    if SIMPLE.fullmatch(text) and name not in ("mfu", "params_b"):  # as most are
        return float(text)
    bare = re.sub(r"\([^)]*\)", "", text)  # a remark
    bare = re.sub(r"(?<=\d)[,_ ](?=\d{3}(?!\d))", "", bare)
    bare = re.sub(r"\s*(?:±|\+/?-)\s*[\d.]+", "", bare).strip()  # how far it scatters
    bare = re.sub(r"/sec(?:ond)?$", "/s", re.sub(PER_DEVICE, "", bare))
    if name == "step_time_s":
        bare = re.sub(PER_STEP, "", bare)
    if name == "mem_gib":
        bare = re.sub(MEASURES, "", bare).strip()
    if name == "gpus" and (product := re.fullmatch(NODES_BY_DEVICES, bare)):
        bare = str(int(product[1]) * int(product[2]))
    found = NUMBER.fullmatch(bare)
    scales = SCALES.get(name, PLAIN)
    if found is None or found[2] not in scales:
        raise BadRow(f"{name}={cells[name]}: not a number")
    value = float(found[1]) * scales[found[2]]
    if not math.isfinite(value) or value <= 0:
        raise BadRow(f"{name}={cells[name]}: not a positive number")
    if name == "mfu" and value > 1 and found[2] == "":  # percent without its sign
        value /= 100
    if name == "params_b" and value > MOST_BILLIONS and found[2] == "":  # not in billions
        value /= 1e9
    if name == "mfu" and value > 1:
        raise BadRow(f"mfu={cells[name]}: more than the peak")
    return value


MOST_BILLIONS = 1e5
"""Of parameters: a hundred times the largest models."""

NODES_BY_DEVICES = r"(\d{1,6}) ?(?:nodes?|hosts?|servers?)? ?[x\u00d7*] ?(\d{1,3})(?: ?gpus?)?"
"""`8x8`, `8 nodes x 8`."""


def read_integer(cells: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from 1, or the default where the cell is empty."""
    value = read_number(cells, name)
    if value is None:
        return default
    if value != int(value) or not 1 <= value < 1e12:
        raise BadRow(f"{name}={cells[name]}: not a whole number from 1")
    return int(value)
