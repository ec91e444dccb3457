"""The smallest run of the same shape: same axes, schedule and ZeRO stage, at most 8 processes."""

from __future__ import annotations

from launcher.config.schema import (
    Data,
    Hardware,
    Model,
    Optimizer,
    Parallelism,
    Run,
    Train,
    is_schedule_file,
)
from launcher.plan.estimate import plan_stages
from launcher.plan.records import Layout
from launcher.plan.schedule_choice import plan_chain

VERIFY_STEPS = 5
# Adam divides by |gradient| + eps: with a tiny eps the rounding noise of gradients near zero, which
# depends on the order of sums, grows to full steps (seen: 1.3e-4 of a weight at eps 1e-8).
VERIFY_EPS = 1e-4
# Large steps blow it up, too: weights of 32 blocks that were rounded otherwise at the start (6e-8)
# have a gradient norm that differs by 7e-5 after five steps of adamw at 1e-2, by 2e-7 at 1e-3.
VERIFY_RATES = {"adamw": 1e-3, "sgd": 0.1}
_HEADS, _HEAD_DIM = 4, 8
MOST_PROCESSES = 8


def shrink_run(run: Run, layout: Layout) -> Run:
    """A run that CPU processes train in seconds and that takes the same paths through the code.

    Kept: which axes are cut (of four all but dp), schedule, ZeRO stage, recompute mode, rank order,
    update rule, what the model is made of, and whether documents are kept apart (then every line
    is one). Made small: every degree above 2 (a lone axis keeps up to 4), every dimension, the
    batch. Replaced: bf16 by fp32, data by the standard library's text, attention dropout (each
    rank draws its own) by none, the learning-rate schedule by a constant of at most
    VERIFY_RATES, Adam's eps by at least VERIFY_EPS.
    """
    tp, cp, pp, dp = _small_degrees(run, layout)
    model = _small_model(run.model, layout, tp, pp)
    by_hand = _small_layers_per_stage(_layers_per_part(run, layout), pp * layout.vpp)
    if by_hand is not None:
        model = model.model_copy(update={"num_layers": sum(by_hand)})
    microbatches = layout.num_microbatches
    if not is_schedule_file(run.parallelism.schedule):  # That is made for its own number.
        microbatches = min(microbatches, 2 * pp + 1)
    micro = min(layout.micro_batch_size, 2)
    return run.model_copy(
        update={
            "model": model,
            "hardware": _processes(run.hardware, tp * cp * pp * dp),
            "parallelism": _small_parallelism(run.parallelism, layout, (tp, cp, pp, dp), by_hand),
            "optimizer": _plain_optimizer(run.optimizer),
            "data": Data(name="stdlib_text", kind="stdlib_text", packing=run.data.packing),
            "train": _small_train(run.train, micro, microbatches, dp),
            "precision": run.precision.model_copy(update={"name": "fp32", "compute": "fp32"}),
            "launch": run.launch.model_copy(update={"name": "local"}),
        }
    )


def _processes(hardware: Hardware, count: int) -> Hardware:
    return hardware.model_copy(
        update={"device": "cpu", "num_nodes": 1, "gpus_per_node": count, "speeds": None}
    )


def _small_parallelism(
    parallelism: Parallelism,
    layout: Layout,
    degrees: tuple[int, int, int, int],
    by_hand: tuple[int, ...] | None,
) -> Parallelism:
    tp, cp, pp, dp = degrees
    is_file = is_schedule_file(parallelism.schedule)
    return parallelism.model_copy(
        update={
            "tp": tp,
            "cp": cp,
            "pp": pp,
            "dp": dp,
            "recompute": layout.recompute,
            "sequence_parallel": parallelism.sequence_parallel and tp > 1,
            "layers_per_stage": by_hand,
            "schedule_lines": parallelism.schedule_lines if is_file else None,
        }
    )


def _plain_optimizer(optimizer: Optimizer) -> Optimizer:
    return optimizer.model_copy(
        update={
            "warmup_steps": 0,
            "schedule": "constant",
            "learning_rate": min(optimizer.learning_rate, VERIFY_RATES[optimizer.name]),
            "min_learning_rate": 0.0,
            "eps": max(optimizer.eps, VERIFY_EPS),
        }
    )


def _small_train(train: Train, micro: int, microbatches: int, dp: int) -> Train:
    return train.model_copy(
        update={
            "steps": VERIFY_STEPS,
            "sequence_length": 32,
            "micro_batch_size": micro,
            "num_microbatches": microbatches,
            "global_batch_size": micro * microbatches * dp,
            "validate_every": None,
            "validation_batches": 0,
            "log_every": 1,
            "compile": False,
            "init_from": None,
        }
    )


def _small_degrees(run: Run, layout: Layout) -> tuple[int, int, int, int]:
    """tp, cp, pp and dp: at most 2 each; an axis that is alone keeps up to 4.

    A schedule from a file keeps its stages, however many. Where there are too many processes, dp is
    left out (gradients are averaged over cp in the same way), then cp, then tp.
    """
    degrees = (layout.tp, layout.cp, layout.pp, layout.dp)
    limit = 4 if sum(degree > 1 for degree in degrees) == 1 else 2
    tp, cp, pp, dp = (min(degree, limit) for degree in degrees)
    if is_schedule_file(run.parallelism.schedule):
        pp = layout.pp
    room = MOST_PROCESSES // pp
    if tp * cp * dp > room:
        dp = 1
    if tp * cp > room:
        cp = 1
    if tp > room:
        tp = 1
    return (2 if tp == 3 else tp), (2 if cp == 3 else cp), pp, dp


def _layers_per_part(run: Run, layout: Layout) -> tuple[int, ...] | None:
    """Where they are not even: written by hand, or by the speed of the devices."""
    if run.hardware.speeds is None or run.parallelism.layers_per_stage is not None:
        return run.parallelism.layers_per_stage
    stages, chain = plan_stages(run, layout), plan_chain(run, layout)
    homes = [chain.home(part) for part in range(chain.num_parts)]
    return tuple(stages[stage].pieces[chunk].num_layers for stage, chunk in homes)


def _small_layers_per_stage(
    counts: tuple[int, ...] | None, num_parts: int
) -> tuple[int, ...] | None:
    """Two blocks, or one where a part has fewer than others; of the first parts and the last."""
    if counts is None:
        return None
    first = -(-num_parts // 2)
    kept = counts[:first] + counts[len(counts) - (num_parts - first) :]
    return tuple(1 if count < max(kept) else 2 for count in kept)


def _small_model(model: Model, layout: Layout, tp: int, pp: int) -> Model:
    """The same architecture with every dimension small and the same divisibility."""
    is_uneven = layout.pp > 1 and model.num_layers % (layout.pp * layout.vpp) > 0
    scaling = model.rope_scaling
    return model.model_copy(
        update={
            "num_layers": 2 * pp * layout.vpp + is_uneven,
            "hidden_size": _HEADS * _HEAD_DIM,
            "num_heads": _HEADS,
            "num_kv_heads": _small_kv_heads(model, layout, tp),
            # Heads that do not add up to the hidden width stay so.
            "head_dim": 2 * _HEAD_DIM
            if model.head_size * model.num_heads != model.hidden_size
            else None,
            "ffn_hidden_size": 64,
            "vocab_size": 256 + (model.vocab_size % layout.tp > 0),
            "max_sequence_length": 64,
            "sliding_window": 16 if model.sliding_window else None,
            "rope_scaling": scaling and scaling.model_copy(update={"original_max_position": 16}),
            "attention_dropout": 0.0,
        }
    )


def _small_kv_heads(model: Model, layout: Layout, tp: int) -> int:
    """As many as query heads, fewer, or fewer than tp ranks: as in the full model."""
    if layout.tp > model.kv_heads:
        return max(1, tp // 2)
    if model.kv_heads == model.num_heads:
        return _HEADS
    return max(tp, _HEADS // 2) if tp < _HEADS else _HEADS
