"""What a search decides step by step, as nodes of its queue, and what it says at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from launcher.frozen import frozen
from launcher.plan.collectives import Links
from launcher.plan.schedule_records import Chain
from launcher.plan.search_choice import Choice
from launcher.plan.search_cuts import Cut
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Sharding
from launcher.plan.search_sharded import Pieces
from launcher.plan.search_stages import Stages
from launcher.plan.search_state_floors import Floor


@dataclass
class Counts:
    """What became of the layouts; a decided step of many layouts counts as one."""

    examined: int = 0
    """Partial and whole layouts that were given a bound of memory or time."""
    over_memory: int = 0
    """Of these, dropped because nothing below them fits."""
    illegal: int = 0
    """Combinations that a rule refuses."""
    simulated: int = 0
    """Whole layouts whose schedule was walked."""
    too_slow: int = 0
    """Never taken further: even their bound is behind the last layout that was asked for."""


@frozen
class Ranked:
    """A layout and how long a step of it takes."""

    choice: Choice
    step_s: float


@frozen
class Ranking:
    """The best layout of each of the best kinds (`Choice.kind`), fastest first."""

    best: tuple[Ranked, ...]
    counts: Counts


class Family(NamedTuple):
    """Before all: blocks that differ in cp alone."""

    mesh: Mesh
    """Without cp, of so many samples that a rank of any of them has a divisor of its tokens."""


class Block(NamedTuple):
    """Then: the degrees that cut a block, with all microbatches."""

    mesh: Mesh
    """Its microbatch is made of all that are possible."""
    batches: dict[int, list[tuple[int, int, int]]]
    """Of every microbatch (pp, dp, number of microbatches)."""


class Sized(NamedTuple):
    """First step: a block with one of its microbatches, before memory is looked at."""

    block: Block
    mesh: Mesh
    """In the quickest way to recompute."""
    batches: list[tuple[int, int, int]]


class Recomputed(NamedTuple):
    """Then: the layouts of one way to recompute, and the ways that recompute more."""

    mesh: Mesh
    stages: tuple[Stages, ...]
    later: tuple[tuple[Mesh, tuple[Stages, ...]], ...]


class Plan(NamedTuple):
    """A schedule with its chunks, whatever the mesh."""

    name: str
    vpp: int
    late: bool
    """Whether its backward is split."""
    chain: Chain
    number: int
    """Of the chain, which is kept."""
    peak: int | None
    """Chunks of microbatches that its first stage keeps; None: not counted."""


class Bounded(NamedTuple):
    """A schedule with its chunks, whatever the sharding."""

    seconds: float
    """Least, per sample."""
    position: int
    name: str
    vpp: int
    cut: Cut
    roomy: list[Sharding]
    """With which the first stage and the most crowded one may have room."""


class Roomy(NamedTuple):
    """Stages of which the first and the most crowded one may have room."""

    stages: Stages
    shardings: list[Sharding]
    """With some schedule."""
    plans: list[tuple[int, Plan, Cut, list[Sharding]]]
    """Position of the schedule, the schedule, its split, with which shardings."""


class Scheduled(NamedTuple):
    """Second step: the schedules that may do, quickest first."""

    stages: Stages
    shardings: list[Sharding]
    pipelines: list[Bounded]
    over_links: dict[tuple[int, int], float]
    """Least seconds of a schedule (its position) on some links (their number), once known."""
    sharded: Pieces = ()
    """The parts of all schedules, where these wait for sharded weights."""


class Place(NamedTuple):
    """An order of ranks."""

    order: tuple[str, ...]
    links: Links
    number: int
    """Of the links that a pipeline knows: orders that differ for dp alone have the same."""


class Pipeline(NamedTuple):
    """Third step: the sharding, and one of the schedules; what is missing is the order of ranks."""

    scheduled: Scheduled
    sharding: Sharding
    floors: list[Floor]
    """Of every order of ranks; one for all while these are not looked at, then one for each place
    that some axes have together.
    """
    places: list[Place] | None
    """Orders of ranks; None, then empty before they are looked at."""
    rank: int
    """Of the schedule, among those of these stages."""


class Ordered(NamedTuple):
    """Fourth step: a layout in the first of some orders of ranks, quickest first."""

    choice: Choice
    places: list[tuple[float, int, Place]]
    """Least seconds per sample, position, order."""
    fits: bool
    """Whether its memory is known to hold it: no order changes that."""


Node = Family | Block | Sized | Recomputed | Stages | Scheduled | Pipeline | Ordered | Choice
