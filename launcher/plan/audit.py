"""What is legal in a plan but probably not meant: warnings with a fix that can be typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from launcher.config.hardware_schema import ExchangeKind
from launcher.config.rule import divisors
from launcher.config.schema import Run
from launcher.plan.audit_pipeline import starved_pipeline, uneven_stages
from launcher.plan.audit_room import DOUBLINGS, larger_run, room_fixes
from launcher.plan.audit_words import warn
from launcher.plan.memory import estimate_memory
from launcher.plan.records import Layout, Memory, Stage, Warning
from launcher.plan.speeds import mixed_stages
from launcher.plan.step_time import StepEstimate

IDLE_SHARE = 0.4
"""Below this share of memory in use, larger microbatches or less recomputation would fit."""

MAX_COMMUNICATION = 0.4
"""Above this share of the step, the devices mostly wait for each other."""


def find_warnings(
    run: Run, layout: Layout, stages: Sequence[Stage], memory: Memory, step: StepEstimate
) -> tuple[Warning, ...]:
    """All warnings, the costliest kind first."""
    found = (
        _memory(run, layout, memory),
        _host_memory(run, layout, memory),
        _tp_crosses_nodes(layout, step),
        _ep_crosses_nodes(layout, step),
        _experts_everywhere(run, layout),
        _uneven_rails(layout, step),
        starved_pipeline(layout, step),
        uneven_stages(run, layout, step),
        _communication(layout, step),
        _idle_memory(run, layout, stages, memory, step),
        _replicated_heads(run, layout),
        _mixed_speeds(run, layout),
        _other_kernels(run),
    )
    return tuple(warning for warning in found if warning is not None)


def _memory(run: Run, layout: Layout, memory: Memory) -> Warning | None:
    if memory.fits:
        return None
    fullest = max(memory.per_stage, key=lambda stage: stage.total_bytes)
    fixes = list(room_fixes(run, layout, memory))
    return warn(
        id="does-not-fit",
        message=f"stage {fullest.stage} needs {_gib(fullest.total_bytes)} GiB of "
        f"{_gib(memory.usable_bytes)} GiB usable ({_gib(memory.capacity_bytes)} GiB in all)",
        fixes=fixes,
    )


def _host_memory(run: Run, layout: Layout, memory: Memory) -> Warning | None:
    assert run.hardware.node is not None
    have = run.hardware.node.host_memory_bytes
    if memory.host_bytes_per_node <= have:
        return None
    count = layout.gpus_per_node
    less_there = {"none": (), "optimizer": ("none",), "parameters": ("optimizer", "none")}
    fixes = [f"parallelism.offload={kind}" for kind in less_there[layout.offload]]
    fixes += [f"hardware.gpus_per_node={less}" for less in divisors(count)[-2::-1]][:2]
    fixes += [larger_run(run, layout, 2**power) for power in range(1, DOUBLINGS + 1)]
    return warn(
        id="host-memory",
        message=f"{count} {'processes take' if count > 1 else 'process takes'} "
        f"{_gib(memory.host_bytes_per_node)} GiB of the node's {_gib(have)} GiB of RAM",
        fixes=fixes,
    )


def _tp_crosses_nodes(layout: Layout, step: StepEstimate) -> Warning | None:
    entry = next((entry for entry in step.communication if entry.axis == "tp"), None)
    if entry is None or not entry.crosses_nodes:
        return None
    inside = [tp for tp in divisors(layout.tp) if layout.gpus_per_node % tp == 0]
    if layout.order[0] != "tp" and layout.tp in inside:
        return Warning(
            id="tp-crosses-nodes",
            message="tensor-parallel groups span nodes because tp is not the fastest axis",
            fix=PLAIN_ORDER,
        )
    order = "" if layout.order[0] == "tp" else f" {PLAIN_ORDER}"
    fixes = [f"parallelism.tp={tp}{order}" for tp in reversed(inside)]
    return warn(
        id="tp-crosses-nodes",
        message=f"tp={layout.tp} spans nodes of {layout.gpus_per_node}: every block's all-reduces "
        "use the network",
        fixes=fixes,
    )


PLAIN_ORDER = "parallelism.order=[tp,cp,dp,pp]"


def _ep_crosses_nodes(layout: Layout, step: StepEstimate) -> Warning | None:
    entry = next((entry for entry in step.communication if entry.axis == "ep"), None)
    if entry is None or not entry.crosses_nodes:
        return None
    inside = [ep for ep in divisors(layout.ep) if ep <= layout.gpus_per_node]
    order = "" if layout.order[:3] == ("tp", "cp", "dp") else f" {PLAIN_ORDER}"
    fixes = [f"parallelism.ep={ep}{order}" for ep in reversed(inside)]
    return warn(
        id="ep-crosses-nodes",
        message=f"ep={layout.ep} spans nodes of {layout.gpus_per_node}: tokens travel to their "
        "experts and back over the network in every block",
        fixes=fixes,
    )


def _experts_everywhere(run: Run, layout: Layout) -> Warning | None:
    """Only where dealing them out is quicker, which is tried."""
    experts = run.model.experts
    if experts is None or layout.ep > 1:
        return None
    fixes = [f"parallelism.ep={ep}" for ep in divisors(experts.num_experts, layout.gpus_per_node)]
    if len(fixes) == 1:
        return None
    width = experts.ffn_hidden_size
    cut = f" ({width // layout.tp:,} of {width:,} columns)" if layout.tp > 1 else ""
    return warn(
        id="experts-everywhere",
        message=f"every rank has all {experts.num_experts} experts of a block{cut}: many small "
        "products, and all of their weights",
        fixes=fixes[:0:-1],
    )


def _uneven_rails(layout: Layout, step: StepEstimate) -> Warning | None:
    """A group of dp x cp with more ranks on one node than on another waits for the fuller one."""
    entry = next((entry for entry in step.communication if entry.axis == "dp"), None)
    if entry is None or not entry.crosses_nodes or has_even_rails(layout):
        return None
    inner = layout.tp if layout.order[0] == "tp" else 1
    order = "" if layout.order[0] == "tp" else f" {PLAIN_ORDER}"
    larger = [tp for tp in range(1, layout.gpus_per_node + 1) if _fills_rails(layout, tp)]
    near = sorted(larger, key=lambda tp: (abs(math.log2(tp / layout.tp)), tp))
    fixes = [f"parallelism.tp={tp}{order}" for tp in near]
    fixes.append(f"hardware.num_nodes={_even_nodes(layout)}{order}")
    fewer = range(layout.gpus_per_node - 1, 0, -1)
    fixes += [f"hardware.gpus_per_node={count}" for count in fewer if count & (count - 1) == 0]
    return warn(
        id="uneven-rails",
        message=f"dp groups have {layout.dp * layout.cp} ranks, {inner} apart, and nodes have "
        f"{layout.gpus_per_node} devices: some nodes carry more ranks of a group than others, and "
        "their adapters more of its traffic",
        fixes=fixes[:9],
    )


def has_even_rails(layout: Layout) -> bool:
    """Whether every node that carries ranks of a dp group carries as many of them."""
    if layout.order[0] == "dp":
        return True
    inner = layout.tp if layout.order[0] == "tp" else 1
    if inner % layout.gpus_per_node == 0:  # one on each, at most
        return True
    return layout.gpus_per_node % inner == 0 and _is_even(layout, inner)


def _fills_rails(layout: Layout, tp: int) -> bool:
    """Whether this tp, its replicas as many as the devices leave, is even on every node."""
    others = tp * layout.pp * layout.cp
    if layout.gpus_per_node % tp or layout.world_size % others:
        return False
    return _is_even(replace(layout, tp=tp, dp=layout.world_size // others), tp)


def _even_nodes(layout: Layout) -> int:
    """The next number of nodes on which the same layout is even; twice as many at the latest."""
    others = layout.tp * layout.pp * layout.cp
    for nodes in range(layout.nodes + 1, 2 * layout.nodes):
        devices = nodes * layout.gpus_per_node
        wider = replace(layout, nodes=nodes, world_size=devices, dp=devices // others)
        if devices % others == 0 and _fills_rails(wider, layout.tp):
            return nodes
    return 2 * layout.nodes


def _is_even(layout: Layout, inner: int) -> bool:
    per_node = layout.gpus_per_node // inner
    replicas = layout.dp * layout.cp
    return replicas % per_node == 0 or per_node % replicas == 0


def _communication(layout: Layout, step: StepEstimate) -> Warning | None:
    share = step.time.exposed_communication_s / step.time.step_s
    if not share > MAX_COMMUNICATION:  # nor where the step takes for ever
        return None
    busiest = max(step.communication, key=lambda entry: entry.seconds_per_step)
    fixes = _fewer_messages(layout, busiest.axis)
    return warn(
        id="communication-bound",
        message=f"{share:.0%} of the step is communication that nothing hides, most of it "
        f"{busiest.op} over {busiest.axis}",
        fixes=fixes,
    )


def _fewer_messages(layout: Layout, axis: str) -> list[str]:
    """What gains most where this axis is busiest: less of it or, where it costs as much however
    many tokens there are, more tokens for it.
    """
    once_more = [f"train.num_microbatches={2 * layout.num_microbatches}"]
    larger = [f"train.micro_batch_size={2 * layout.micro_batch_size}"]
    if axis in ("tp", "cp", "ep"):  # travels with the tokens
        less = [f"parallelism.{axis}={max(1, getattr(layout, axis) // 2)}"]
        return less if axis == "tp" else less + once_more
    if axis == "host":
        return ["parallelism.offload=none", "parallelism.offload=optimizer", *larger]
    return larger + once_more if layout.zero_stage == 3 else once_more


def _idle_memory(
    run: Run, layout: Layout, stages: Sequence[Stage], memory: Memory, step: StepEstimate
) -> Warning | None:
    """Only where something is paid for memory that is not needed, and what is advised fits."""
    share = memory.peak_bytes / memory.capacity_bytes
    if run.hardware.device == "cpu" or share >= IDLE_SHARE:
        return None
    idle = f"{1 - share:.0%} of the memory is idle"
    larger = 2 * layout.micro_batch_size
    if layout.recompute == "full":
        advised = replace(layout, recompute="none")
        message, fix = f"blocks are recomputed though {idle}", "parallelism.recompute=none"
    elif layout.micro_batch_size * layout.sequence_length < 8192 and layout.num_microbatches > 1:
        advised = replace(layout, micro_batch_size=larger)
        message = f"{idle} and microbatches are small: larger ones use the device better"
        fix = f"train.micro_batch_size={larger}"
    else:
        return None
    in_flight = step.simulation.peak_in_flight
    if not estimate_memory(run, advised, stages, in_flight).fits:
        return None
    return Warning(id="idle-memory", message=message, fix=fix)


def _replicated_heads(run: Run, layout: Layout) -> Warning | None:
    if layout.tp <= run.model.kv_heads:
        return None
    return Warning(
        id="kv-heads-replicated",
        message=f"tp={layout.tp} exceeds the {run.model.kv_heads} key/value heads: each is held by "
        f"{layout.tp // run.model.kv_heads} ranks",
        fix=f"parallelism.tp={run.model.kv_heads}",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def _mixed_speeds(run: Run, layout: Layout) -> Warning | None:
    """A stage is as fast as its slowest device."""
    mixed = mixed_stages(run.hardware, layout)
    if not mixed:
        return None
    outermost = [*(axis for axis in layout.order if axis != "pp"), "pp"]
    is_outermost = layout.order[-1] == "pp"
    return Warning(
        id="stage-of-unequal-devices",
        message=f"stage{'s' if len(mixed) > 1 else ''} {', '.join(map(str, mixed[:8]))} "
        f"{'have' if len(mixed) > 1 else 'has'} devices of several speeds and "
        f"{'wait' if len(mixed) > 1 else 'waits'} for the slowest",
        fix=f"parallelism.pp={2 * layout.pp}"
        if is_outermost
        else f"parallelism.order=[{','.join(outermost)}]",
    )


def _other_kernels(run: Run) -> Warning | None:
    """A table of measured kernels that has nothing to say about this run."""
    gpu, compute = run.hardware.gpu, run.precision.compute
    kernels = gpu.kernels if gpu else ()
    measured = {kernel.type for kernel in kernels if kernel.kind == "matmul"}
    others = any(kernel.kind in get_args(ExchangeKind) for kernel in kernels)
    if not kernels or compute in measured or (others and not measured):
        return None
    return Warning(
        id="kernels-of-another-type",
        message=f"hardware.kernels has no matrix products in {compute}: their modelled times stay",
        fix=f"precision={sorted(measured)[0]}" if measured else "hardware.kernels=null",
    )
