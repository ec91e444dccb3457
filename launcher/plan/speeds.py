"""Devices that are not equally fast: what `hardware.speeds` means for each pipeline stage."""

from __future__ import annotations

from launcher.config.schema import Hardware
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout


def stage_speeds(hardware: Hardware, layout: Layout) -> tuple[float, ...]:
    """Relative speed of every stage: that of the slowest device in it.

    Its ranks meet in every microbatch (tp, cp) or at the end of the step (dp), so all wait for it.
    """
    if hardware.speeds is None:
        return (1.0,) * layout.pp
    found = [0.0] * layout.pp
    for stage, speeds in enumerate(_by_stage(hardware.speeds, layout)):
        found[stage] = min(speeds)
    return tuple(found)


def mixed_stages(hardware: Hardware, layout: Layout) -> tuple[int, ...]:
    """Stages that have devices of several speeds."""
    if hardware.speeds is None:
        return ()
    by_stage = enumerate(_by_stage(hardware.speeds, layout))
    return tuple(stage for stage, speeds in by_stage if len(speeds) > 1)


def _by_stage(speeds: tuple[float, ...], layout: Layout) -> list[set[float]]:
    """Speeds are of nodes, or of devices one by one."""
    per_speed = layout.world_size // len(speeds)
    stride = build_mesh(layout).strides()["pp"]
    found: list[set[float]] = [set() for _ in range(layout.pp)]
    for rank in range(layout.world_size):
        found[rank // stride % layout.pp].add(speeds[rank // per_speed])
    return found
