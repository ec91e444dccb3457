"""Rules on how the model is cut and on the devices that it is cut for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.config.devices import AXES, known_dp, num_devices, tp_candidates
from launcher.config.rule import Rule, divisors
from launcher.config.rules_context import heads_allow, sequence_lengths
from launcher.config.rules_experts import tp_experts
from launcher.config.schedule_facts import most_stages, needs_pipeline, room_for_stages
from launcher.config.schema import Run


def _shard_size(run: Run) -> str | None:
    size, dp = run.parallelism.shard_size, known_dp(run)
    if size is None:
        return None
    if run.parallelism.zero_stage == 0:
        return "zero_stage=0 shards nothing"
    if dp is not None and dp * run.parallelism.cp % size:
        return f"does not divide dp x cp = {dp * run.parallelism.cp}"
    return None


def _shard_sizes(run: Run) -> Sequence[int | None]:
    if run.parallelism.zero_stage == 0:
        return (None,)
    return divisors((known_dp(run) or 1) * run.parallelism.cp)


def _tp_heads(run: Run) -> str | None:
    tp, heads = run.parallelism.tp, run.model.num_heads
    if tp and heads % tp:
        return f"{tp} does not divide model.num_heads={heads}"
    return None


def _tp_kv_heads(run: Run) -> str | None:
    tp, kv_heads = run.parallelism.tp, run.model.kv_heads
    if tp and kv_heads % tp and tp % kv_heads:
        return f"{tp} neither divides model.num_kv_heads={kv_heads} nor is a multiple of it"
    return None


def _tp_ffn(run: Run) -> str | None:
    tp, ffn = run.parallelism.tp, run.model.ffn_hidden_size
    if tp and ffn % tp:
        return f"{tp} does not divide model.ffn_hidden_size={ffn}"
    return None


def _tp_vocabulary(run: Run) -> str | None:
    tp, rows = run.parallelism.tp, run.model.vocab_size
    # Rows are padded to a multiple of tp; a rank of padding alone could not take part in the loss.
    if tp and (tp - 1) * math.ceil(rows / tp) >= rows:
        return f"{tp} shards of model.vocab_size={rows} leave a rank without a row"
    return None


TP_CUTS = (_tp_heads, _tp_kv_heads, _tp_ffn, tp_experts, _tp_vocabulary)
"""What tp cuts, as what is wrong with it; None: nothing."""


def _pp_layers(run: Run) -> str | None:
    pp, layers = run.parallelism.pp, run.model.num_layers
    if pp and pp > layers:
        return f"{pp} stages for model.num_layers={layers} leave a stage without a block"
    return None


def _pp_candidates(run: Run) -> list[int]:
    most, least = most_stages(run), 2 if needs_pipeline(run) else 1
    return [pp for pp in divisors(num_devices(run) or most, limit=most) if pp >= least]


def _mesh_fills_devices(run: Run) -> str | None:
    devices = num_devices(run)
    degrees = {axis: getattr(run.parallelism, axis) for axis in AXES}
    given = math.prod(degree for degree in degrees.values() if degree)
    if devices is None:
        return None
    shown = {
        axis: degree for axis, degree in degrees.items() if degree and (axis != "cp" or degree > 1)
    }
    sizes = " x ".join(f"{axis} {degree}" for axis, degree in shown.items())
    have = f"the {devices} devices of {run.hardware.num_nodes} x {run.hardware.gpus_per_node}"
    if all(degrees.values()):
        return None if given == devices else f"{sizes} makes {given} processes, not {have}"
    return None if devices % given == 0 else f"{sizes} = {given} does not divide {have}"


def _mesh_fix(run: Run) -> str:
    """Fewer devices where a local layout is given in full; else the nearest smaller degrees."""
    degrees = run.parallelism
    devices = num_devices(run) or 1
    given = math.prod(getattr(degrees, axis) or 1 for axis in AXES)
    if run.hardware.name == "local" and degrees.dp and given < devices:
        return f"hardware.gpus_per_node={given}"
    if devices % ((degrees.tp or 1) * degrees.cp * (degrees.pp or 1)) == 0:
        return ""  # The one legal dp mends it.
    tp = cp = pp = 1  # What is open stays so.
    if degrees.tp:
        tp = max(size for size in divisors(devices, limit=degrees.tp) if not _tp_broken(run, size))
    sizes_of_cp = divisors(devices // tp, limit=degrees.cp)
    cp = max(size for size in sizes_of_cp if heads_allow(run, tp=tp, cp=size))
    left = devices // tp // cp
    if degrees.pp:
        pp = max(divisors(left, limit=min(degrees.pp, run.model.num_layers)))
    sizes = [("tp", tp, degrees.tp), ("cp", cp, degrees.cp > 1), ("pp", pp, degrees.pp)]
    sizes.append(("dp", left // pp, degrees.dp or (degrees.tp and degrees.pp)))
    return " ".join(f"parallelism.{axis}={size}" for axis, size, is_given in sizes if is_given)


def _tp_broken(run: Run, tp: int) -> bool:
    parallelism = run.parallelism.model_copy(update={"tp": tp})
    changed = run.model_copy(update={"parallelism": parallelism})
    return any(broken(changed) for broken in TP_CUTS)


def _dp_candidates(run: Run) -> list[int]:
    devices = num_devices(run) or 1
    degrees = run.parallelism
    left, rest = divmod(devices, (degrees.tp or 1) * degrees.cp * (degrees.pp or 1))
    if rest:
        return []
    return [dp for dp in divisors(left) if _take_all(run, left // dp)]


def _take_all(run: Run, devices: int) -> bool:
    """Whether tp and pp, where they are open, have a use for so many devices together."""
    degrees, per_node = run.parallelism, run.hardware.gpus_per_node or 1
    tps = [1] if degrees.tp else [tp for tp in divisors(per_node) if not _tp_broken(run, tp)]
    most = 1 if degrees.pp else most_stages(run)
    return any(devices % tp == 0 and devices // tp <= most for tp in tps)


def _sequence_needs_tp(run: Run) -> str | None:
    if run.parallelism.sequence_parallel and run.parallelism.tp == 1:
        return "there is no tensor parallelism whose ranks could share the sequence"
    return None


def _sequence_pieces(run: Run) -> str | None:
    tp, length = run.parallelism.tp, run.train.sequence_length
    if not run.parallelism.sequence_parallel or not tp or not length:
        return None
    length, rest = divmod(length, run.parallelism.cp)
    if not rest and length % tp:
        part = " of a cp rank" if run.parallelism.cp > 1 else ""
        return f"parallelism.tp={tp} does not divide the sequence of {length} tokens{part}"
    return None


def _order_complete(run: Run) -> str | None:
    order = run.parallelism.order
    if sorted(order) != sorted(AXES):
        return f"the order names {', '.join(order)}; it must name tp, cp, dp and pp, each once"
    return None


LAYOUT_RULES = (
    Rule(
        id="tp-divides-heads",
        field="parallelism.tp",
        says="tp divides model.num_heads",
        why="Each tensor-parallel rank computes whole heads (Megatron-LM, 1909.08053, sec. 3).",
        broken=_tp_heads,
        candidates=tp_candidates,
    ),
    Rule(
        id="tp-fits-kv-heads",
        field="parallelism.tp",
        says="tp divides model.num_kv_heads or is a multiple of it",
        why="A rank holds whole key/value heads, or one head is held by several ranks.",
        broken=_tp_kv_heads,
        candidates=tp_candidates,
    ),
    Rule(
        id="tp-divides-ffn",
        field="parallelism.tp",
        says="tp divides model.ffn_hidden_size",
        why="The MLP's inner width is cut into equal columns (Megatron-LM, 1909.08053, sec. 3).",
        broken=_tp_ffn,
        candidates=tp_candidates,
    ),
    Rule(
        id="tp-fits-vocabulary",
        field="parallelism.tp",
        says="every tp rank holds at least one row of the vocabulary",
        why="Rows are padded to a multiple of tp; a rank with padding only has no logits.",
        broken=_tp_vocabulary,
        candidates=tp_candidates,
    ),
    Rule(
        id="pp-at-most-layers",
        field="parallelism.pp",
        says="pp is at most model.num_layers",
        why="A pipeline stage without a block only adds a hop.",
        broken=_pp_layers,
        candidates=_pp_candidates,
        fix=room_for_stages,
    ),
    Rule(
        id="mesh-fills-devices",
        field="parallelism.dp",
        says="tp x cp x pp x dp is the number of devices",
        why="One process drives one device; a booked device must not idle.",
        broken=_mesh_fills_devices,
        candidates=_dp_candidates,
        fix=_mesh_fix,
    ),
    Rule(
        id="sequence-parallel-needs-tp",
        field="parallelism.sequence_parallel",
        says="sequence_parallel needs tp > 1",
        why="The sequence is cut over the ranks that share each matrix (2205.05198, sec. 4.2.2); "
        "one rank has nothing to cut.",
        broken=_sequence_needs_tp,
        candidates=lambda run: (False,),
    ),
    Rule(
        id="sequence-parallel-divides-sequence",
        field="train.sequence_length",
        says="with sequence_parallel, tp divides train.sequence_length / cp",
        why="Every tp rank holds an equal piece of the sequence: gathers and scatters know no "
        "other.",
        broken=_sequence_pieces,
        candidates=sequence_lengths,
    ),
    Rule(
        id="order-complete",
        field="parallelism.order",
        says="order is a permutation of tp, cp, dp, pp",
        why="A rank has one digit per axis; ep borrows ranks of dp x cp and has no digit.",
        broken=_order_complete,
        candidates=lambda run: (AXES,),
    ),
    Rule(
        id="shard-size-divides-replicas",
        field="parallelism.shard_size",
        says="shard_size divides dp x cp, and zero_stage shards something",
        why="Every group of so many ranks holds one whole copy of what is sharded.",
        broken=_shard_size,
        candidates=_shard_sizes,
    ),
)
