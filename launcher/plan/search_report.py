"""What a search prints: one screen of text, or one JSON document, with commands to type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from launcher.config.quoting import typed_value
from launcher.config.schema import Run
from launcher.plan.records import Time
from launcher.plan.search_advice import Found
from launcher.plan.search_choice import dotted
from launcher.plan.search_predict import Predicted, predict
from launcher.plan.search_remedy import Remedy
from launcher.plan.search_words import command, command_words, overrides_of, remedied
from launcher.plan.units import plural

WIDTH = 100
SMALL = 0.05
"""Shares of the step below this limit nothing."""


def limits_of(predicted: Predicted) -> dict[str, float]:
    """Shares of the step that are no useful work, largest first."""
    time, layout = predicted.estimate.step.time, predicted.choice
    makespan_s = predicted.estimate.step.simulation.makespan_s
    tail_s = time.step_s - makespan_s - time.optimizer_s
    wait_s = max(0.0, time.exposed_communication_s - tail_s)
    seconds: dict[str, float] = {}
    for entry in predicted.estimate.step.communication:
        inside = {"tp", "cp", "ep", "host"} | ({"dp"} if layout.zero_stage == 3 else set())
        axis = entry.axis.removeprefix("expert ")  # dp of experts is dp
        if axis in inside:
            seconds[axis] = seconds.get(axis, 0.0) + entry.seconds_per_step
    total = sum(seconds.values()) or 1.0
    shares = {f"{axis} communication": wait_s * each / total for axis, each in seconds.items()}
    key = "dp communication"
    shares[key] = shares.get(key, 0.0) + max(0.0, tail_s)
    shares |= {"bubble": time.bubble_s, "optimizer": time.optimizer_s}
    shares["recomputation"] = _again_s(predicted, time)
    found = {name: each / time.step_s for name, each in shares.items() if each > 0}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _again_s(predicted: Predicted, time: Time) -> float:
    """Computing that only spares memory."""
    if predicted.choice.recompute == "none":
        return 0.0
    from dataclasses import replace

    from launcher.plan.execution import runtime_job
    from launcher.plan.fill import build_layout
    from launcher.plan.stage_time import estimate_parts

    layout = build_layout(predicted.run)
    block = estimate_parts(runtime_job(predicted.run, layout)).block_s
    plain = estimate_parts(runtime_job(predicted.run, replace(layout, recompute="none"))).block_s
    return time.compute_s * (1 - plain / block) if block else 0.0


def limit_words(predicted: Predicted) -> str:
    """`bubble 12 %`, or compute."""
    for name, share in limits_of(predicted).items():
        if share >= SMALL:
            memory = " (memory)" if name == "recomputation" else ""
            return f"{name} {share:.0%}{memory}"
        break
    return "compute"


def found_json(
    found: Found, given: Run, typed: Sequence[str], folders: Sequence[str] = ()
) -> dict[str, Any]:
    """The document of `search --json`; `folders` were named by --config-dir."""

    def one(predicted: Predicted) -> dict[str, Any]:
        estimate, words = predicted.estimate, overrides_of(predicted, given, typed)
        memory = estimate.memory
        layout = asdict(predicted.choice) | {
            "order": list(predicted.choice.order),
            "global_batch_size": predicted.run.train.global_batch_size,
            "sequence_length": predicted.run.train.sequence_length,
        }
        return {
            "layout": layout,
            "time": asdict(estimate.step.time),
            "memory": {
                "peak_bytes": memory.peak_bytes, "usable_bytes": memory.usable_bytes,
                "capacity_bytes": memory.capacity_bytes, "fits": memory.fits,
            },
            "limits": limits_of(predicted),
            "limited_by": limit_words(predicted),
            "overrides": words,
            "command": command(words, folders),
        }  # fmt: skip

    def one_remedy(remedy: Remedy) -> dict[str, Any]:
        after = predict(remedy.after.run, remedy.after.choice)
        words = remedied(remedy.override, after, given, typed)
        named = {"change": remedy.override, "reason": remedy.reason}
        return one(after) | named | {"command": command(words, folders), "overrides": words}

    best = found.best[0] if found.best else None
    change = found.best_change
    return {
        "model": found.run.model.name,
        "hardware": found.run.hardware.name,
        "world_size": found.rule_of_thumb.choice.dp * found.rule_of_thumb.choice.tp
        * found.rule_of_thumb.choice.cp * found.rule_of_thumb.choice.pp,
        "global_batch_size": found.run.train.global_batch_size,
        "fixed": [dotted(key) for key in found.fixed],
        "fits": bool(found.best),
        "candidates": [one(each) for each in found.best],
        "rule_of_thumb": one(found.rule_of_thumb) | {"ratio": ratio(best, found.rule_of_thumb)},
        "own": None if found.own is None else one(found.own) | {"ratio": ratio(best, found.own)},
        "best_change": None if change is None or found.own is None else one(change.after) | {
            "change": {key: typed_value(value) for key, value in change.overrides.items()},
            "gain": ratio(change.after, found.own),
        },
        "counts": asdict(found.counts),
        "missing": _missing_json(found),
        "nearest": [one_remedy(remedy) for remedy in found.nearest],
    }  # fmt: skip


def ratio(best: Predicted | None, other: Predicted) -> float | None:
    """Tokens/s of one over the other's, minus 1; None where either does not fit."""
    if best is None or not other.estimate.memory.fits or not best.estimate.memory.fits:
        return None
    return best.estimate.step.time.tokens_per_s / other.estimate.step.time.tokens_per_s - 1


def _missing_json(found: Found) -> dict[str, Any] | None:
    if found.leanest is None:
        return None
    memory = found.leanest.memory
    fullest = max(memory.per_stage, key=lambda stage: stage.total_bytes)
    return {
        "stage": fullest.stage, "bytes": memory.peak_bytes - memory.usable_bytes,
        "peak_bytes": memory.peak_bytes, "usable_bytes": memory.usable_bytes,
        "layout": asdict(found.leanest.choice),
    }  # fmt: skip


def render_found(
    found: Found, given: Run, typed: Sequence[str], folders: Sequence[str] = ()
) -> str:
    """One screen."""
    return "\n".join(_lines(found, given, typed, folders)) + "\n"


HEAD = (
    f"{'':<7}{'tp':>3}{'pp':>4}{'vpp':>4}{'dp':>6} {'sharding':<14}{'schedule':<17}"
    f"{'recompute':<10}{'micro':>5}{'sp':>4}{'tokens/s':>11}{'MFU':>6}{'GiB':>7}"
)


def _lines(found: Found, given: Run, typed: Sequence[str], folders: Sequence[str]) -> Iterator[str]:
    run, counts = found.run, found.counts
    hardware = run.hardware
    device = hardware.gpu.name if hardware.gpu else hardware.device
    whole = run.train.global_batch_size
    batch = "" if whole is None else f", {whole * (run.train.sequence_length or 1):,} tokens/step"
    yield (
        f"search      {run.model.name} on {hardware.num_nodes} "
        f"{plural('node', hardware.num_nodes)} x {hardware.gpus_per_node} {device}{batch}"
    )[:WIDTH]
    if found.fixed:
        yield from _wrap("fixed       ", [dotted(key) for key in found.fixed])
    yield f"looked at   {counts.examined:,} partial layouts: " + (
        "none fits, by bounds of memory"
        if found.leanest is not None
        else f"{counts.over_memory:,} over memory, {counts.too_slow:,} too slow, "
        f"{counts.simulated} simulated"
    )
    yield ""
    yield HEAD
    for number, predicted in enumerate(found.best, 1):
        yield _row(f"{number}.", predicted)
        yield f"{'':<7}limited by {limit_words(predicted)}{_order(predicted)}"
    yield _row("rule", found.rule_of_thumb)
    yield (
        f"{'':<7}rule of thumb: tp up to the node, then stages or FSDP, dp from the rest"
        + _ratio(found, found.rule_of_thumb)
    )
    if found.own is not None:
        yield _row("yours", found.own)
        own = limit_words(found.own) + _order(found.own)
        yield f"{'':<7}limited by {own}{_ratio(found, found.own)}"
    yield ""
    if found.best_change is not None and found.own is not None:
        words = " ".join(f"{k}={typed_value(v)}" for k, v in found.best_change.overrides.items())
        gain = ratio(found.best_change.after, found.own)
        yield f"one change  {words}: " + ("fits" if gain is None else f"{gain:+.1%} tokens/s")
    elif found.own is not None:
        yield "one change  no single change of yours gains"
    if found.best:
        best = overrides_of(found.best[0], given, typed)
        yield from _wrap(f"{'the best':<12}", command_words(best, folders), " \\")
    else:
        yield from _does_not_fit(found, given, typed)


def _row(label: str, predicted: Predicted) -> str:
    choice, estimate = predicted.choice, predicted.estimate
    sharding = f"{choice.engine} {choice.zero_stage}"
    time, memory = estimate.step.time, estimate.memory
    over = "!" if not memory.fits else ""
    schedule = choice.schedule if len(choice.schedule) < 17 else "..." + choice.schedule[-13:]
    return (
        f"{label:<7}{choice.tp:>3}{choice.pp:>4}{choice.vpp:>4}{choice.dp:>6} {sharding:<14}"
        f"{schedule:<17}{choice.recompute:<10}{choice.micro_batch_size:>5}"
        f"{'yes' if choice.sequence_parallel else 'no':>4}{time.tokens_per_s:>11,.0f}"
        f"{time.mfu:>6.1%}{memory.peak_bytes / 2**30:>6.1f}{over or ' '}"
    )


def _order(predicted: Predicted) -> str:
    """What the table has no column for."""
    choice = predicted.choice
    words = [
        f"; {axis}={getattr(choice, axis)}" for axis in ("cp", "ep") if getattr(choice, axis) > 1
    ]
    if choice.offload != "none":
        words.append(f"; offload={choice.offload}")
    if choice.order != ("tp", "cp", "dp", "pp"):
        words.append(f"; order {','.join(choice.order)}")
    return "".join(words)


def _ratio(found: Found, other: Predicted) -> str:
    if not other.estimate.memory.fits:
        return "; does not fit (!)"
    gain = ratio(found.best[0] if found.best else None, other)
    return "" if gain is None else f"; the best is {gain:+.1%}"


def _does_not_fit(found: Found, given: Run, typed: Sequence[str]) -> Iterator[str]:
    missing = _missing_json(found)
    if missing is None:
        yield "nothing     no layout is legal with what is fixed"
        return
    yield (
        f"no fit      the leanest layout needs {missing['peak_bytes'] / 2**30:.1f} of "
        f"{missing['usable_bytes'] / 2**30:.1f} GiB on stage {missing['stage']}: "
        f"{missing['bytes'] / 2**30:.1f} GiB are missing"
    )
    for remedy in found.nearest:
        yield f"would fit   {remedy.override} ({remedy.reason})"
    if not found.nearest:
        yield "would fit   nothing that was tried: more nodes, shorter samples, larger devices"


def _wrap(label: str, words: Sequence[str], end: str = "") -> Iterator[str]:
    line = label
    for word in words:
        if len(line) + 1 + len(word) + len(end) > WIDTH and line.strip():
            yield line.rstrip() + end
            line = " " * len(label)
        line += word + " "
    yield line.rstrip()
