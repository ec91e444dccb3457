"""Rules on hardware facts, batches, optimizer, data, checkpoints."""

from __future__ import annotations

from launcher.config.devices import known_dp
from launcher.config.rule import Rule
from launcher.config.rules_context import sequence_lengths
from launcher.config.schema import Run


def _hardware_complete(run: Run) -> str | None:
    missing = [key for key in ("gpu", "node") if getattr(run.hardware, key) is None]
    if missing and run.hardware.name != "local":
        verb = "have" if len(missing) > 1 else "has"
        return f"hardware.{' and hardware.'.join(missing)} {verb} no facts"
    return None


def _network(run: Run) -> str | None:
    if run.hardware.num_nodes > 1 and run.hardware.network is None:
        return f"{run.hardware.num_nodes} nodes need a network between them"
    return None


def _bf16(run: Run) -> str | None:
    gpu = run.hardware.gpu
    if run.precision.compute == "bf16" and gpu and not gpu.has_bf16:
        return f"{gpu.name} has no matrix units for bfloat16"
    return None


def _speeds(run: Run) -> str | None:
    """One node's speeds are those of its devices."""
    speeds, nodes, per_node = (
        run.hardware.speeds,
        run.hardware.num_nodes,
        run.hardware.gpus_per_node,
    )
    if speeds is None or per_node is None or len(speeds) in (nodes, nodes * per_node):
        return None
    wanted = f"{nodes} nodes of {per_node} devices" if nodes > 1 else f"{per_node} devices"
    return f"{len(speeds)} numbers for {wanted}"


def _sequence(run: Run) -> str | None:
    length, longest = run.train.sequence_length, run.model.max_sequence_length
    if length and length > longest:
        return f"{length} is beyond model.max_sequence_length={longest}"
    return None


def _batch_triangle(run: Run) -> str | None:
    whole, dp = run.train.global_batch_size, known_dp(run)
    if whole is None or dp is None:
        return None
    unit = _batch_unit(run, dp)
    if unit > MOST_SAMPLES:  # is a finding of its own
        return None
    micro, count = run.train.micro_batch_size, run.train.num_microbatches
    if whole == unit or (whole % unit == 0 and not (micro and count)):
        return None
    sides = f"micro_batch_size={_side(micro)} x num_microbatches={_side(count)} x dp={dp}"
    return f"{whole} is not {sides}" + ("" if micro and count else " for any whole number")


def _side(value: int | None) -> str:
    return "(open)" if value is None else str(value)


def _batch_unit(run: Run, dp: int) -> int:
    """What the given sides make: every legal global batch is a multiple of it."""
    return (run.train.micro_batch_size or 1) * (run.train.num_microbatches or 1) * dp


def _batch_candidates(run: Run) -> list[int]:
    """The legal neighbours below and above."""
    unit = _batch_unit(run, known_dp(run) or 1)
    below = (run.train.global_batch_size or unit) // unit * unit
    if run.train.micro_batch_size and run.train.num_microbatches:
        return [unit]
    return sorted(one for one in {max(unit, below), below + unit} if one <= MOST_SAMPLES)


MOST_SAMPLES = 2**20
"""Of a step: the most that global_batch_size may be."""


def _batch_size(run: Run) -> str | None:
    unit = _batch_unit(run, known_dp(run) or 1)
    if unit <= MOST_SAMPLES:
        return None
    train, dp = run.train, known_dp(run) or 1
    sides = f"micro_batch_size={_side(train.micro_batch_size)} x {_side(train.num_microbatches)}"
    return f"{sides} x dp={dp} makes {unit} samples a step, and {MOST_SAMPLES} are the most"


def _fewer_microbatches(run: Run) -> list[int]:
    each = (run.train.micro_batch_size or 1) * (known_dp(run) or 1)
    return [MOST_SAMPLES // each] if each <= MOST_SAMPLES else []


def _fewer_samples(run: Run) -> str:
    """Of a microbatch, where no number of them will do; the batch follows."""
    counts = _fewer_microbatches(run)
    sides = f"train.num_microbatches={counts[0] if counts else 1}"
    if not counts:
        sides += " train.micro_batch_size=1"
    return sides if run.train.global_batch_size is None else f"{sides} train.global_batch_size=null"


def _min_rate(run: Run) -> str | None:
    optimizer = run.optimizer
    if optimizer.min_learning_rate > optimizer.learning_rate:
        return f"it is above optimizer.learning_rate={optimizer.learning_rate}"
    return None


def _project(run: Run) -> str | None:
    if run.train.tracker_project is not None and run.train.tracker != "wandb":
        return f"train.tracker={run.train.tracker or 'null'} has no projects"
    return None


RUN_RULES = (
    Rule(
        id="hardware-complete",
        field="hardware.name",
        says="hardware other than local has gpu and node facts",
        why="Memory and speed of a cluster are never guessed from the machine at hand.",
        broken=_hardware_complete,
        fix="+hardware/gpu=h100_sxm +hardware/node=hgx_h100",
    ),
    Rule(
        id="network-between-nodes",
        field="hardware.num_nodes",
        says="more than one node needs hardware.network",
        why="Traffic between nodes is part of the predicted step time.",
        broken=_network,
        candidates=lambda run: (1,),
    ),
    Rule(
        id="core-share-of-cpu",
        field="hardware.gpu.core_share",
        says="hardware.gpu.core_share is for processes of a CPU",
        why="Nobody takes turns on a GPU that is a rank's own.",
        broken=lambda run: (
            "a rank has its GPU whole"
            if run.hardware.device != "cpu" and run.hardware.gpu and run.hardware.gpu.core_share
            else None
        ),
        candidates=lambda run: (None,),
        fix="hardware.gpu.core_share=null",
    ),
    Rule(
        id="bf16-on-this-device",
        field="precision.compute",
        says="precision=bf16 is for devices whose matrix units take bfloat16",
        why="DeepSpeed refuses it there, and torch computes it without them, many times slower.",
        broken=_bf16,
        candidates=lambda run: ("fp32",),
    ),
    Rule(
        id="speeds-count",
        field="hardware.speeds",
        says="hardware.speeds has one number per node, or one per device",
        why="A speed without its device, or a device without its speed, would be guessed.",
        broken=_speeds,
        candidates=lambda run: (None,),
        fix="hardware.speeds=null",
    ),
    Rule(
        id="speeds-not-searched",
        field="hardware.speeds",
        says="parallelism=auto is for devices of one speed",
        why="The search costs a stage like any other of its kind.",
        broken=lambda run: (
            "parallelism=auto searches layouts of equal devices"
            if run.parallelism.name == "auto" and run.hardware.speeds
            else None
        ),
        candidates=lambda run: (None,),
        fix="hardware.speeds=null",
    ),
    Rule(
        id="sequence-within-positions",
        field="train.sequence_length",
        says="sequence_length is at most model.max_sequence_length",
        why="A learned table ends there, and rotary positions were never trained beyond it.",
        broken=_sequence,
        candidates=sequence_lengths,
    ),
    Rule(
        id="batch-at-most",
        field="train.num_microbatches",
        says="a step has at most 1,048,576 samples",
        why="More are beyond any training run: one of the sides is mistyped.",
        broken=_batch_size,
        candidates=_fewer_microbatches,
        fix=_fewer_samples,
    ),
    Rule(
        id="batch-triangle",
        field="train.global_batch_size",
        says="global_batch_size = micro_batch_size x num_microbatches x dp",
        why="Two of them and dp decide the third; three that disagree have no meaning.",
        broken=_batch_triangle,
        candidates=_batch_candidates,
    ),
    Rule(
        id="project-of-a-tracker",
        field="train.tracker_project",
        says="tracker_project goes with tracker=wandb",
        why="It would be ignored.",
        broken=_project,
        candidates=lambda run: (None,),
        fix="train.tracker=wandb",
    ),
    Rule(
        id="learning-rate-floor",
        field="optimizer.min_learning_rate",
        says="min_learning_rate is at most learning_rate",
        why="The schedule decays from the one to the other.",
        broken=_min_rate,
        candidates=lambda run: (run.optimizer.learning_rate / 10, 0.0),
    ),
)
