"""Degrees of parallelism that a row leaves out, where they follow from what it says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from launcher.plan.backtest_cells import read_integer, read_number
from launcher.plan.backtest_programs import own_words


def complete_degrees(cells: Mapping[str, str], assumed: list[str]) -> dict[str, str]:
    """The cells with `cp` by a degree in `sp`, `gpus` by all degrees, or one degree by the others.

    64 GPUs with pp=2, dp=8 and an empty tp have tp=4.
    """
    filled = dict(cells)
    if (ring := _sequence_degree(cells)) > 1:
        filled["cp"] = str(ring)
        assumed.append(f"cp={ring}, by sp={cells['sp']}")
    elif not cells["cp"] and (noted := re.search(IN_NOTES, own_words(cells["notes"]).lower())):
        filled["cp"] = noted[1]
        assumed.append(f"cp={noted[1]}, by {noted[0]}")
    product = 1
    for name in ("tp", "pp", "cp", "dp"):
        product *= read_integer(filled, name, 1)
    if not filled["gpus"] and filled["dp"]:
        filled["gpus"] = str(product)
        assumed.append(f"gpus={product}, as the degrees make")
    blank = [name for name in ("tp", "pp") if not filled[name]] or ["cp"]
    rest, over = divmod(read_integer(filled, "gpus", product), product)
    is_open = len(blank) == 1 and not filled[blank[0]] and filled["dp"]
    if is_open and rest > 1 and not over and rest != read_integer(filled, "ep", 1):
        filled[blank[0]] = str(rest)
        assumed.append(f"{blank[0]}={rest}, as the other degrees leave")
    return filled


def _sequence_degree(cells: Mapping[str, str]) -> int:
    """Ranks that share a sequence by the cell `sp`: `ulysses(8)`, or `8` that is not tp's."""
    found = re.fullmatch(DEGREE, cells["sp"].lower())
    if found is None or read_integer(cells, "cp", 1) > 1:
        return 1
    return int(found[1]) if int(found[1]) != read_integer(cells, "tp", 1) else 1


IN_NOTES = (
    r"(?:ulysses(?: sp| cp| degree| size)?|(?<![a-z])cp|context[- ]parallel\w*(?: size| degree)?)"
    r"(?: of|[ =:(x])? ?(\d{1,4})(?![\d.]| ?x)"
)
"""Ranks that share a sequence where no cell says it: `Ulysses SP=8`, `CP=4`."""

DEGREE = r"(?:[a-z]+[- ])?(?:ulysses|ring|sp|cp|degree)?[-_ =:(x]*(\d{1,4})\)?"
"""Not the number in `yes (since 2022)`."""


def split_modules(cells: Mapping[str, str], assumed: list[str]) -> dict[str, str]:
    """An MI250 is two devices of 64 GB to every program: of a row that counts whole ones (four to
    a node, or 128 GB each), twice as many, each at half the rate.
    """
    gpu, per_node = cells["gpu"].lower(), cells["gpus_per_node"]
    is_whole = "mi250" in gpu and re.search(r"(?<!2 )(?<!two )(?:gcd|die)", gpu) is None
    is_whole &= per_node == "4" or (not per_node and re.search(r"128 ?g|gcd|die", gpu) is not None)
    if not is_whole or not cells["gpus"]:
        return dict(cells)
    gpus = read_integer(cells, "gpus", 1)
    split = dict(cells) | {"gpus": str(2 * gpus), "gpus_per_node": "8"}
    assumed.append(f"gpus={2 * gpus}: two dies to each of {gpus} modules")
    degrees = [read_integer(cells, name, 1) for name in ("tp", "pp", "cp", "dp")]
    if cells["dp"] and math.prod(degrees) == gpus:
        split["dp"] = str(2 * degrees[-1])
    for column in () if re.search(PER_DIE, cells["notes"].lower()) else PER_DEVICE_COLUMNS:
        if (rate := read_number(cells, column)) is not None:
            split[column] = str(rate / 2)
    return split


PER_DEVICE_COLUMNS = ("tflops_per_gpu", "tokens_per_s_per_gpu")

PER_DIE = r"(?:per|/) ?(?:gcd|die)"
