"""How many devices a job has, and which degrees fill them."""

from __future__ import annotations

from launcher.config.rule import divisors
from launcher.config.schema import Run

AXES = ("tp", "cp", "dp", "pp")


def num_devices(run: Run) -> int | None:
    """Devices of the job; None while gpus_per_node is open."""
    per_node = run.hardware.gpus_per_node
    return None if per_node is None else per_node * run.hardware.num_nodes


def known_dp(run: Run) -> int | None:
    """The given dp, or the one that the other degrees leave; None while it is open."""
    degrees = run.parallelism
    if degrees.dp is not None:
        return degrees.dp
    devices = num_devices(run)
    if devices is None or degrees.tp is None or degrees.pp is None:
        return None
    rest, remainder = divmod(devices, degrees.tp * degrees.cp * degrees.pp)
    return None if remainder else rest or None


def tp_candidates(run: Run) -> list[int]:
    """Numbers of ranks inside a node that the heads can be shared out to."""
    per_node = run.hardware.gpus_per_node
    return divisors(run.model.num_heads, limit=per_node or run.model.num_heads)


def fewer_stages(run: Run, most: int) -> str:
    """What to type for as many stages as the devices allow, with the dp that they leave."""
    degrees, devices = run.parallelism, num_devices(run)
    if devices is None:
        return f"parallelism.pp={most}"
    left = max(1, devices // ((degrees.tp or 1) * degrees.cp))
    if degrees.dp and not degrees.tp:  # tp takes what this leaves
        left = max(1, left // degrees.dp)
    pp = max(divisors(left, limit=max(1, most)))
    has_dp = degrees.dp and degrees.tp
    return f"parallelism.pp={pp}" + (f" parallelism.dp={left // pp}" if has_dp else "")
