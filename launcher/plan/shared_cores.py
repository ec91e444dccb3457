"""Stages on a CPU with fewer cores than processes: who waits leaves its cores to the others.

A device's facts are of the part of a core that a process gets while all compute. In a pipeline
some always wait, and the others are that much quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.config.schema import Hardware
from launcher.plan.records import Communication, Layout
from launcher.plan.schedule_clock import Durations, run_clocks
from launcher.plan.schedule_records import Action, Chain
from launcher.plan.traffic import gradients_are_whole


def busy_share(hardware: Hardware) -> float:
    """Of a core, what a process has while all compute; 1 on devices of its own."""
    if hardware.device != "cpu" or hardware.gpu is None:
        return 1.0
    return hardware.gpu.core_share or 1.0


def takes_turns(hardware: Hardware, chain: Chain) -> bool:
    """Whether there are stages that wait and fewer cores than processes."""
    return chain.num_stages > 1 and busy_share(hardware) < 1


def quickening(
    hardware: Hardware,
    chain: Chain,
    num_microbatches: int,
    ranks: Sequence[Sequence[Action]],
    durations: Durations,
    has_transfers: bool = True,
) -> float:
    """By how much the whole pipeline is quicker than `durations`, which are of busy cores; >= 1.

    Were every stage alone, its actions would take `core_share` of that. While k of them compute on
    cores for fewer, they take turns: the step is the integral of how many there are for each core.
    """
    if not takes_turns(hardware, chain):
        return 1.0
    share = busy_share(hardware)
    clocks = run_clocks(chain, num_microbatches, ranks, durations, has_transfers)
    spans = [span for clock in clocks for span in clock.computing()]
    together_s = max(clock.time_s for clock in clocks)
    if not together_s:
        return 1.0
    return together_s / _in_turns_s(spans, share * chain.num_stages, share)


def _in_turns_s(spans: Sequence[tuple[float, float]], room: float, share: float) -> float:
    """Length of a timeline whose spans shrink to `share`, of which `room` can run side by side."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    total_s, running, since = 0.0, 0, 0.0
    for moment, change in changes:
        total_s += (moment - since) * share * max(1.0, running / room)
        running, since = running + change, moment
    return total_s


def shorten_passes(
    entries: tuple[Communication, ...], layout: Layout, quicker: float
) -> tuple[Communication, ...]:
    """What belongs to the passes of microbatches is as much quicker as they are."""
    if quicker == 1.0:
        return entries
    in_passes = ("tp", "cp", "ep", "pp", *(() if gradients_are_whole(layout) else ("dp",)))
    return tuple(
        replace(entry, seconds_per_step=entry.seconds_per_step / quicker)
        if entry.axis in in_passes
        else entry
        for entry in entries
    )
