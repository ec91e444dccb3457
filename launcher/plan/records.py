"""What a plan says: frozen records whose JSON form is the contract of `plan.json`."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Any

from launcher.config.schema import Run
from launcher.frozen import frozen
from launcher.plan.simulate import Simulation


@frozen
class Layout:
    """The mesh and the batch, with nothing left open."""

    world_size: int
    """Processes, one per device."""
    nodes: int
    gpus_per_node: int
    tp: int
    cp: int
    ep: int
    pp: int
    vpp: int
    dp: int
    zero_stage: int
    engine: str = "deepspeed"
    """What shards over dp: deepspeed or fsdp2."""
    micro_batch_size: int
    """Samples per forward."""
    num_microbatches: int
    """Forwards per step on each replica."""
    global_batch_size: int
    """Samples per step: micro_batch_size x num_microbatches x dp."""
    sequence_length: int
    schedule: str
    recompute: str
    order: tuple[str, ...]
    """Axes from the fastest-varying rank digit to the slowest."""
    recompute_every: int = 1
    """Of every so many blocks one recomputes."""
    offload: str = "none"
    """What waits in the node's RAM: none, optimizer or parameters."""
    sequence_parallel: bool = False
    """What lies between cut matrix products is sharded along the sequence over tp."""
    overlap_tp: bool = False
    """Collectives of tp run beside matrix products."""
    overlap_p2p: bool = True
    """Stages compute while activations travel."""


@frozen
class Stage:
    """One pipeline stage: blocks `first_layer` up to, not including, `end_layer`.

    With several model chunks, these are the lowest and the highest of its blocks, and `chunks`
    says which it has in between.
    """

    stage: int
    first_layer: int
    end_layer: int
    parameters: int
    """Parameters of the whole stage, over all its tp ranks, tied copies included."""
    is_first: bool
    """It has the embedding."""
    is_last: bool
    """It has the head."""
    chunks: tuple[tuple[int, int], ...] = ()
    """First block and the one behind the last, chunk by chunk; empty: one chunk."""

    @property
    def num_layers(self) -> int:
        """Blocks of the stage."""
        if not self.chunks:
            return self.end_layer - self.first_layer
        return sum([end - start for start, end in self.chunks])

    @property
    def pieces(self) -> tuple[Stage, ...]:
        """The stage's chunks as stages of their own, without counted parameters."""
        if not self.chunks:
            return (self,)
        last = len(self.chunks) - 1
        return tuple(
            Stage(
                stage=self.stage,
                first_layer=start,
                end_layer=end,
                parameters=0,
                is_first=self.is_first and chunk == 0,
                is_last=self.is_last and chunk == last,
            )
            for chunk, (start, end) in enumerate(self.chunks)
        )


@frozen
class StageMemory:
    """Peak memory of one rank of a stage, by kind, in bytes."""

    stage: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    buffers_bytes: int
    """Communication and reduction buffers, and temporaries such as float32 logits."""
    overhead_bytes: int
    """Context, libraries, communicators, allocator reserve; on a CPU a checkpoint's copy, too."""

    @property
    def total_bytes(self) -> int:
        """Sum of all kinds."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.buffers_bytes
            + self.overhead_bytes
        )


@frozen
class Memory:
    """Peak memory per stage against what a device has."""

    per_stage: tuple[StageMemory, ...]
    peak_bytes: int
    """Of the fullest stage."""
    capacity_bytes: int
    """Of one device."""
    usable_bytes: int
    """What of it the plan allows itself: the fit's margin is the difference."""
    fits: bool
    host_bytes_per_node: int
    """Host RAM that the job's processes take on one node, copies of checkpoints included."""
    error_bytes: int = 0
    """The estimate's own error bar, 10.5 % of the peak: it covers every measured run of
    docs/backtest.md (`plan/memory.py`: ERROR_SHARE)."""


@frozen
class Time:
    """One optimizer step, predicted."""

    step_s: float
    compute_s: float
    """Busy time of the slowest stage."""
    bubble_s: float
    bubble_fraction: float
    exposed_communication_s: float
    optimizer_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    """Model TFLOP/s per device, without recompute, causal attention at half."""
    mfu: float
    """tflops_per_gpu over the dense peak of the compute type."""
    gpu_hours: float
    """Devices x hours of all train.steps."""
    cost: float | None = None
    """Of all train.steps, in the currency of hardware.price_per_gpu_hour; None: no price."""


@frozen
class Communication:
    """What one rank sends along one axis in one step."""

    axis: str
    """Of the mesh; or expert dp, embedding (copies of a tied table), host (the node's RAM)."""
    op: str
    """all_reduce, reduce_scatter, all_gather, all_to_all, send_recv or fetch."""
    group_size: int
    crosses_nodes: bool
    bytes_per_step: int
    seconds_per_step: float


@frozen
class Warning:
    """Legal, but probably not meant."""

    id: str
    message: str
    fix: str
    others: tuple[str, ...] = ()
    """What to try where that is not legal or does not mend it; not in the JSON."""


@frozen
class Learned:
    """A plan's prediction, corrected by what earlier runs measured."""

    table: str
    """Where their rows are."""
    runs: int
    alike: str
    """What they have in common with this one."""
    step_ratio: float
    """Median of measured over predicted step time."""
    step_ratio_range: tuple[float, float]
    """The smallest and the largest."""
    memory_ratio: float
    """The largest of measured over predicted peak memory."""
    step_s: float
    """Predicted times the ratio."""
    tokens_per_s: float
    peak_bytes: int
    """Predicted times the ratio."""


@frozen
class Plan:
    """The answer of `launch plan`."""

    run: Run
    """The configuration with every open value filled."""
    layout: Layout
    stages: tuple[Stage, ...]
    memory: Memory
    time: Time
    communication: tuple[Communication, ...]
    parameters: int
    """Parameters of the model, each once."""
    checkpoint_bytes: int
    """float32 weights and optimizer state on disk."""
    simulation: Simulation
    """The step that `time` and `memory` were read from; not in the JSON."""
    warnings: tuple[Warning, ...] = ()
    decisions: tuple[str, ...] = field(default=())
    """What was left open and how it was filled, a line each."""
    learned: Learned | None = None
    """What finished runs on this hardware say about it; None: there are none."""

    def to_json(self) -> dict[str, Any]:
        """The document of `plan --json` and `plan.json`."""
        memory = asdict(self.memory)
        memory["per_stage"] = [
            {**asdict(stage), "total_bytes": stage.total_bytes} for stage in self.memory.per_stage
        ]
        return {
            "run": self.run.model_dump(mode="json"),
            "layout": asdict(self.layout) | {"order": list(self.layout.order)},
            "stages": [_stage_json(stage) for stage in self.stages],
            "memory": memory,
            "time": asdict(self.time),
            "communication": [asdict(entry) for entry in self.communication],
            "parameters": self.parameters,
            "checkpoint_bytes": self.checkpoint_bytes,
            "warnings": [_warning_json(warning) for warning in self.warnings],
            "decisions": list(self.decisions),
            "learned": asdict(self.learned) if self.learned else None,
        }


def _warning_json(warning: Warning) -> dict[str, Any]:
    return {"id": warning.id, "message": warning.message, "fix": warning.fix}


def _stage_json(stage: Stage) -> dict[str, Any]:
    """`layers` holds the first and the last block, both included; None for a stage without any.

    `chunks`, where there are several, holds the same for each of them.
    """
    chunks = {"chunks": [_span(*chunk) for chunk in stage.chunks]} if stage.chunks else {}
    return {
        "stage": stage.stage,
        "layers": _span(stage.first_layer, stage.end_layer),
        **chunks,
        "parameters": stage.parameters,
        "is_first": stage.is_first,
        "is_last": stage.is_last,
    }


def _span(start: int, end: int) -> list[int] | None:
    return [start, end - 1] if end > start else None


def _range(span: list[int] | None) -> tuple[int, int]:
    return (span[0], span[1] + 1) if span else (0, 0)


def layout_from_json(document: dict[str, Any]) -> Layout:
    """The layout of a `plan.json`."""
    layout = dict(document["layout"])
    layout["order"] = tuple(layout["order"])
    return Layout(**layout)


def stages_from_json(document: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages of a `plan.json`."""
    return tuple(
        Stage(
            stage=entry["stage"],
            first_layer=_range(entry["layers"])[0],
            end_layer=_range(entry["layers"])[1],
            chunks=tuple(_range(span) for span in entry.get("chunks", ())),
            parameters=entry["parameters"],
            is_first=entry["is_first"],
            is_last=entry["is_last"],
        )
        for entry in document["stages"]
    )
