"""Degrees of parallelism that a row leaves out, where they follow from what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.plan.backtest_cells import read_integer


def complete_degrees(cells: Mapping[str, str], assumed: list[str]) -> dict[str, str]:
    """The cells with `cp` by a degree in `sp`, `gpus` by all degrees, or one degree by the others.

    64 GPUs with pp=2, dp=8 and an empty tp have tp=4.
    """
    filled = dict(cells)
    if (ring := _sequence_degree(cells)) > 1:
        filled["cp"] = str(ring)
        assumed.append(f"cp={ring}, by sp={cells['sp']}")
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


DEGREE = r"(?:[a-z]+[- ])?(?:ulysses|ring|sp|cp|degree)?[-_ =:(x]*(\d{1,4})\)?"
"""Not the number in `yes (since 2022)`."""
