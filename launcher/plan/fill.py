"""What the run leaves open, filled: TP inside the node, PP until it fits, DP from the rest.

The order of preference, and why:
1. the smallest tp that fits without a pipeline: each doubling adds all-reduces in every block;
2. then pipeline stages on top of the largest tp of a node: a pipeline costs its bubble, but its
   traffic is small enough to leave the node;
3. at each of these, recompute none, then selective, which costs little. Full recomputation costs
   a third more compute and is tried only where tp is used up: under 1F1B the first stage keeps pp
   microbatches of num_layers / pp blocks, so stages shrink weights but not activations. Where full
   recomputation is the first that fits, the next longer pipelines that fit without it are
   compared with it by predicted speed.
What the user has pinned is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.config.rule import divisors
from launcher.config.rules import check_run, obeys_rules
from launcher.config.schema import Run
from launcher.errors import ConfigError, Finding
from launcher.frozen import frozen
from launcher.plan.batch import default_sequence_length, solve_batch
from launcher.plan.estimate import estimate_layout, estimate_layout_memory
from launcher.plan.fill_reasons import describe_choices
from launcher.plan.records import Layout, Memory


@frozen
class Filled:
    """A run with nothing left open, and how that came about."""

    run: Run
    layout: Layout
    decisions: tuple[str, ...]
    """A line per value that was open."""


@frozen
class _Tried:
    """One way to fill the layout."""

    run: Run
    layout: Layout
    memory: Memory


def fill_run(run: Run) -> Filled:
    """Fill every open value; ConfigError with all findings where no legal layout exists.

    Where nothing fits, the layout with the smallest peak memory is taken.
    """
    asked = run
    if findings := check_run(run):
        raise ConfigError(findings)
    run = close_shared(run)
    best = _choose(_try_layouts(run))
    if best is None:
        raise ConfigError(_no_layout(run))
    return Filled(
        run=best.run,
        layout=best.layout,
        decisions=describe_choices(asked, best.layout, best.memory),
    )


def close_shared(run: Run) -> Run:
    """The run with what all of its layouts share closed: devices, overlap, sequence length."""
    run = _fill_devices(run)
    by_hand, vpp = run.parallelism.layers_per_stage, run.parallelism.vpp
    if by_hand is not None and run.parallelism.pp is None and len(by_hand) % vpp == 0:
        run = _update(run, "parallelism", pp=len(by_hand) // vpp)
    if run.parallelism.overlap_tp is None:  # cores that compute have no time for a collective
        run = _update(run, "parallelism", overlap_tp=run.hardware.device != "cpu")
    if run.train.sequence_length is None:
        run = _update(run, "train", sequence_length=default_sequence_length(run.model))
    return run


def _choose(attempts: Iterator[_Tried]) -> _Tried | None:
    """The first that fits, or else the smallest."""
    smallest: _Tried | None = None
    for tried in attempts:
        if tried.memory.fits:
            return _prefer_longer_pipeline(tried, attempts)
        if smallest is None or tried.memory.peak_bytes < smallest.memory.peak_bytes:
            smallest = tried
    return smallest


def _prefer_longer_pipeline(fit: _Tried, attempts: Iterator[_Tried]) -> _Tried:
    """The fit, unless it recomputes all and more stages are faster because they need not."""
    if fit.layout.recompute != "full":
        return fit
    for other in attempts:
        if other.layout.pp > 4 * fit.layout.pp:
            return fit
        if other.memory.fits and other.layout.recompute != "full":
            return max(fit, other, key=_tokens_per_s)
    return fit


def _tokens_per_s(tried: _Tried) -> float:
    layout = tried.layout
    return estimate_layout(tried.run, layout).step.time.tokens_per_s


def build_layout(run: Run) -> Layout:
    """The layout of a run in which nothing is open."""
    degrees, train = run.parallelism, run.train
    tp, pp, dp = _closed(degrees.tp), _closed(degrees.pp), _closed(degrees.dp)
    assert degrees.recompute is not None
    return Layout(
        world_size=tp * degrees.cp * pp * dp,
        nodes=run.hardware.num_nodes,
        gpus_per_node=_closed(run.hardware.gpus_per_node),
        tp=tp,
        cp=degrees.cp,
        ep=degrees.ep,
        pp=pp,
        vpp=degrees.vpp,
        dp=dp,
        zero_stage=degrees.zero_stage,
        engine=degrees.engine,
        micro_batch_size=_closed(train.micro_batch_size),
        num_microbatches=_closed(train.num_microbatches),
        global_batch_size=_closed(train.global_batch_size),
        sequence_length=_closed(train.sequence_length),
        schedule=degrees.schedule,
        recompute=degrees.recompute,
        recompute_every=degrees.recompute_every,
        offload=degrees.offload,
        order=degrees.order,
        sequence_parallel=degrees.sequence_parallel,
        overlap_tp=tp > 1 and bool(degrees.overlap_tp),
        overlap_p2p=degrees.overlap_p2p,
    )


def _fill_devices(run: Run) -> Run:
    """Without a number of devices (a CPU), as many as the pinned degrees ask for."""
    if run.hardware.gpus_per_node is not None:
        return run
    degrees = run.parallelism
    wanted = (degrees.tp or 1) * degrees.cp * (degrees.pp or 1) * (degrees.dp or 1)
    return _update(run, "hardware", gpus_per_node=-(-wanted // run.hardware.num_nodes))


def _try_layouts(run: Run) -> Iterator[_Tried]:
    """Legal layouts in the order of preference; what is wrong with the first if none is legal."""
    refusal: ConfigError | None = None
    num_tried = 0
    for tp, pp, dp, may_recompute_all in _degrees(run):
        filled = _update(run, "parallelism", tp=tp, pp=pp, dp=dp)
        try:
            filled = _fill_batch(filled)
        except ConfigError as error:
            refusal = refusal or error
            continue
        for tried in _try_recompute(filled, may_recompute_all):
            num_tried += 1
            yield tried
    if not num_tried and refusal is not None:
        raise refusal


def _degrees(run: Run) -> Iterator[tuple[int, int, int, bool]]:
    """(tp, pp, dp, whether tp is used up) in the order that `parallelism.fill` asks for."""
    degrees = run.parallelism
    devices = _closed(run.hardware.gpus_per_node) * run.hardware.num_nodes
    tps = [degrees.tp] if degrees.tp else _legal_tps(run)
    pps = [degrees.pp] if degrees.pp else _stage_counts(run, devices)
    is_first_pp = degrees.fill != "tp"
    for pp in pps:
        fitting = [tp for tp in tps if _left(devices, tp, pp, degrees.cp, degrees.dp)]
        for tp in fitting if is_first_pp else fitting[-1:]:
            dp = _left(devices, tp, pp, degrees.cp, degrees.dp)
            yield tp, pp, dp, tp == fitting[-1]
        is_first_pp = is_first_pp and not fitting


def _stage_counts(run: Run, devices: int) -> list[int]:
    """Fewest stages first; with fill=pp those that fill a node, then more, then fewer."""
    counts = divisors(devices, run.model.num_layers)
    if run.parallelism.fill != "pp":
        return counts
    node = _closed(run.hardware.gpus_per_node) // (run.parallelism.tp or 1)
    fewer = [count for count in counts if count <= node]
    return fewer[-1:] + counts[len(fewer) :] + fewer[-2::-1]


def _left(devices: int, tp: int, pp: int, cp: int, dp: int | None) -> int:
    """The dp that uses all devices; 0 where there is none or it is not the pinned one."""
    rest, remainder = divmod(devices, tp * pp * cp)
    return rest if not remainder and dp in (None, rest) else 0


def _legal_tps(run: Run) -> list[int]:
    """Divisors of a node's devices by which the model can be cut."""
    tps = divisors(_closed(run.hardware.gpus_per_node), run.model.num_heads)
    ignore_mesh = _update(run, "hardware", gpus_per_node=None)
    return [tp for tp in tps if obeys_rules(_update(ignore_mesh, "parallelism", tp=tp))]


def _fill_batch(run: Run) -> Run:
    degrees, train = run.parallelism, run.train
    if findings := check_run(run):
        raise ConfigError(findings)
    dp, pp = _closed(degrees.dp), _closed(degrees.pp)
    batch = solve_batch(train, dp, pp, _closed(train.sequence_length))
    closed = _update(
        run,
        "train",
        micro_batch_size=batch.micro_batch_size,
        num_microbatches=batch.num_microbatches,
        global_batch_size=batch.global_batch_size,
    )
    if findings := check_run(closed):  # what was solved may not suit the schedule
        raise ConfigError(findings)
    return closed


def _try_recompute(run: Run, may_recompute_all: bool) -> Iterator[_Tried]:
    """The pinned mode, or from the cheapest to the dearest."""
    pinned = run.parallelism.recompute
    if pinned is not None:
        yield _try(run, pinned)
        return
    modes = ["none", "selective"] + (["full"] if may_recompute_all else [])
    least = _try(run, modes[-1])
    if least.memory.fits:  # else the cheaper modes, which keep more, do not fit either
        yield from (_try(run, mode) for mode in modes[:-1])
    yield least


def _try(run: Run, recompute: str) -> _Tried:
    run = _update(run, "parallelism", recompute=recompute)
    layout = build_layout(run)
    return _Tried(run=run, layout=layout, memory=estimate_layout_memory(run, layout))


def _no_layout(run: Run) -> list[Finding]:
    """Nothing legal: what the plainest layout breaks says why."""
    degrees = run.parallelism
    tp, pp = degrees.tp or 1, degrees.pp or 1
    devices = _closed(run.hardware.gpus_per_node) * run.hardware.num_nodes
    left = max(1, devices // (tp * degrees.cp * pp))  # Replicas that nobody named are not blamed.
    plain = _update(run, "parallelism", tp=tp, pp=pp, dp=degrees.dp or left)
    findings = check_run(plain)
    assert findings, "no layout, but no broken rule either"
    return findings


def _update(run: Run, section: str, **values: Any) -> Run:
    record = getattr(run, section)
    return run.model_copy(update={section: record.model_copy(update=values)})


def _closed(value: int | None) -> int:
    assert value is not None, "still open"
    return value
