"""Search: the same as trying every layout, the same every time, and never worse than the rule."""

import json
import shlex
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.cli import main
from launcher.config.hardware_schema import MeasuredKernel
from launcher.config.load import load_run
from launcher.config.quoting import typed_value
from launcher.plan.collectives import exposed_s
from launcher.plan.estimate import estimate_layout, estimate_layout_memory
from launcher.plan.fill import close_shared
from launcher.plan.links import make_link, transfer_s
from launcher.plan.schedule import SCHEDULES, build_orders, build_schedule
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_peaks import peaks_of
from launcher.plan.schedule_records import StageTimes
from launcher.plan.search import Search, rank_layouts
from launcher.plan.search_advice import search_layouts
from launcher.plan.search_auto import fixed_keys
from launcher.plan.search_bounds import least_exposed_s, shortest_s
from launcher.plan.search_choice import changed, layout_of
from launcher.plan.search_cost import Coster, has_late_weights
from launcher.plan.search_floors import Floors
from launcher.plan.search_jobs import Mesh, mesh_of
from launcher.plan.search_sharded import pieces_of
from launcher.plan.search_space import build_space, enumerate_choices
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.search_walks import Walks
from launcher.plan.simulate import peak_in_flight, simulate
from tests.factory import TINY, h100, make_run

MODEL = TINY | {
    "num_layers": 6, "hidden_size": 512, "num_heads": 8, "num_kv_heads": 4,
    "ffn_hidden_size": 2048, "vocab_size": 8192, "max_sequence_length": 2048,
}  # fmt: skip


BATCH = "train.global_batch_size"
ON_EIGHT = (
    "model=llama3_8b train.sequence_length=2048 parallelism.tp=8 parallelism.pp=1 parallelism.dp=1"
)


def small_run(memory_gib=3.2, nodes=2, per_node=4, batch=16, **model):
    hardware = h100(num_nodes=nodes, gpus_per_node=per_node)
    hardware["gpu"] = hardware["gpu"] | {
        "memory_bytes": int(memory_gib * 2**30), "op_overhead_s": 1e-6, "context_bytes": 10**9,
    }  # fmt: skip
    return close_shared(
        make_run(
            model=MODEL | model, hardware=hardware,
            parallelism={"tp": None, "pp": None, "dp": None, "recompute": None},
            train={
                "sequence_length": 1024, "global_batch_size": batch, "micro_batch_size": None,
                "num_microbatches": None,
            },
            precision={"name": "bf16", "compute": "bf16"},
        )
    )  # fmt: skip


def by_brute_force(space, limit):
    """Every layout in every order, by the plan's own function; the best of each kind."""
    found, fits = [], {}
    for choice in enumerate_choices(space):
        run, layout = layout_of(space.run, choice)
        anyhow = replace(choice, order=())  # memory is the same in every order of ranks
        if anyhow not in fits:
            fits[anyhow] = estimate_layout_memory(run, layout).fits
        if fits[anyhow]:
            estimate = estimate_layout(run, layout)
            assert estimate.memory.fits
            seconds = estimate.step.time.step_s / layout.global_batch_size
            found.append((seconds, choice.tie, choice))
    best, seen = [], set()
    for seconds, _, choice in sorted(found, key=lambda entry: entry[:2]):
        if choice.kind not in seen:
            seen.add(choice.kind)
            best.append((choice, seconds * choice_batch(choice)))
    return best[:limit], len(found)


def choice_batch(choice):
    return choice.micro_batch_size * choice.num_microbatches * choice.dp


def assert_same(space, limit=8):
    expected, count = by_brute_force(space, limit)
    best = rank_layouts(space, limit).best
    assert [(each.choice, each.step_s) for each in best] == [
        (choice, pytest.approx(seconds, rel=1e-12)) for choice, seconds in expected
    ]
    return count


@pytest.mark.parametrize(
    ("memory_gib", "fixed"),
    [
        (3.2, {"micro_batch_size": 2, "cp": 1, "sequence_parallel": True}),
        (1.6, {"micro_batch_size": 1, "cp": 1, "sequence_parallel": False}),
        (80.0, {"tp": 2, "cp": 1, "recompute": "none", "engine": "deepspeed"}),
        (8.0, {"tp": 2, "recompute": "none", "micro_batch_size": 1, "engine": "deepspeed"}),
    ],
)
def test_pruning_loses_nothing_against_every_layout_tried(memory_gib, fixed):
    run = small_run(memory_gib=memory_gib)
    micro = fixed.get("micro_batch_size")
    degrees = {key: value for key, value in fixed.items() if key != "micro_batch_size"}
    run = changed(run, parallelism=degrees, train={"micro_batch_size": micro})
    count = assert_same(build_space(run, frozenset(fixed)))
    assert count > 20 or memory_gib < 2


@pytest.mark.parametrize("share", [1 / 3, 0.4, 2 / 3, 0.37])
def test_pruning_loses_nothing_where_processes_take_turns_on_cores(share):
    run = small_run(memory_gib=80.0, nodes=1)
    gpu = run.hardware.gpu.model_copy(update={"core_share": share, "op_overhead_s": 1e-5})
    run = changed(run, hardware={"device": "cpu", "gpu": gpu}, train={"micro_batch_size": 1})
    run = changed(run, parallelism={"recompute": "none"})
    assert_same(build_space(run, frozenset({"micro_batch_size", "recompute"})))


@pytest.mark.parametrize("times", [0.3, 20.0])
@pytest.mark.parametrize("kinds", [("all_reduce", "all_gather", "send_recv"), ("all_gather",)])
def test_pruning_loses_nothing_where_exchanges_of_a_node_were_measured(times, kinds):
    run = small_run(memory_gib=80.0)
    rows = [
        MeasuredKernel(kind=kind, type="fp32", m=size, n=ranks, k=1,
                       seconds=times * transfer_s(kind, size, make_link(run.hardware, ranks, 1)))
        for kind in kinds for size in (2**16, 2**20, 2**24) for ranks in (2, 4)
    ]  # fmt: skip
    gpu = run.hardware.gpu.model_copy(update={"kernels": tuple(rows)})
    run = changed(run, hardware={"gpu": gpu}, train={"micro_batch_size": 1})
    run = changed(run, parallelism={"recompute": "none", "cp": 1, "sequence_parallel": True})
    fixed = frozenset({"micro_batch_size", "recompute", "cp", "sequence_parallel"})
    assert_same(build_space(run, fixed))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    layers=st.integers(2, 7),
    nodes=st.sampled_from([1, 2, 3]),
    per_node=st.sampled_from([2, 4]),
    batch=st.sampled_from([6, 12, 24]),
    memory=st.sampled_from([1.4, 2.0, 8.0]),
    bandwidth=st.sampled_from([1e9, 50e9]),
)
def test_pruning_loses_nothing_on_other_models_and_clusters(
    layers, nodes, per_node, batch, memory, bandwidth
):
    run = small_run(memory, nodes, per_node, batch, num_layers=layers)
    network = run.hardware.network.model_copy(update={"bandwidth": bandwidth})
    run = changed(run, hardware={"network": network}, train={"micro_batch_size": 1})
    fixed = frozenset({"micro_batch_size", "recompute", "cp"})
    run = changed(run, parallelism={"recompute": "selective", "cp": 1})
    assert_same(build_space(run, fixed), limit=5)


SOME_WITHOUT_EXPERTS = [(1, 1, 512), (3, 1, 512), (2, 1, 3072), (0, 2, 512), (1, 3, 3072)]
"""First blocks without experts, how many there are to one with, and the width of an expert."""


def run_with_experts(memory_gib, dense, every, width):
    experts = {
        "num_experts": 8, "experts_per_token": 2, "ffn_hidden_size": width, "num_shared": 1,
        "num_dense_layers": dense, "every": every,
    }  # fmt: skip
    run = small_run(memory_gib, batch=16, num_layers=8, experts=experts)
    return changed(run, train={"micro_batch_size": 1}, parallelism={"tp": 1, "cp": 1})


@pytest.mark.parametrize(("dense", "every", "width"), SOME_WITHOUT_EXPERTS)
def test_pruning_loses_nothing_where_some_blocks_have_no_experts(dense, every, width):
    """Stages behind the first one are then the ones that keep most."""
    run = run_with_experts(2.5, dense, every, width)
    fixed = frozenset({"micro_batch_size", "tp", "cp"})
    assert assert_same(build_space(run, fixed), limit=5) > 10


@pytest.mark.parametrize(("dense", "every", "width"), SOME_WITHOUT_EXPERTS)
def test_no_layout_takes_less_than_its_crowded_stages_are_said_to(dense, every, width):
    run = run_with_experts(80.0, dense, every, width)
    space = build_space(run, frozenset({"micro_batch_size", "tp", "cp", "order"}))
    search = Search(space, Coster(run, 8))
    memory, rooms, shares = search.memory, search.rooms, []
    for choice in enumerate_choices(space):
        mesh, degrees = mesh_of(choice), (choice.pp, choice.dp)
        if choice.pp < 3:
            continue
        cut = memory.coster.cut(mesh, memory.coster.chain_of(choice))
        plans = rooms._plans_of(choice.pp, choice.num_microbatches)
        plan = next(one for one in plans if (one.name, one.vpp) == (choice.schedule, choice.vpp))
        sharding, peak = (choice.engine, choice.zero_stage, choice.offload), 0
        for crowd in rooms._crowds_of(plan, cut, choice.num_microbatches):
            peak = peak or memory.peak_bytes(choice)
            shares.append(memory.bytes_of(mesh, *degrees, sharding, crowd) / peak)
    assert max(shares) <= 1
    assert max(shares) > 0.97  # or it would prune little


@pytest.mark.parametrize("name", [name for name in SCHEDULES if not name.endswith("p")])
@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("p2p_s", [0.0, 0.3])
def test_bounds_are_bounds_and_peaks_are_peaks(name, stages, p2p_s):
    recipe = SCHEDULES[name]
    for chunks in [recipe.chunks] if recipe.chunks else [1, 2, 3]:
        for count in (2 * stages, 2 * stages + 1, 6 * stages + 1):
            times = [
                StageTimes(
                    forward_s=1 + 0.3 * (part % 3),
                    backward_s=1.2 if recipe.splits_backward else 2.1 + 0.2 * (part % 2),
                    weight_s=0.8 if recipe.splits_backward else 0.0,
                )
                for part in range(stages * chunks)
            ]
            schedule = build_schedule(name, stages, count, chunks)
            simulation = simulate(schedule, times, p2p_s)
            bound = shortest_s(name, schedule.chain, count, times, p2p_s)
            assert bound <= simulation.makespan_s * (1 + 1e-12)
            assert bound >= 0.6 * simulation.makespan_s
            orders = build_orders(name, stages, count, chunks)
            durations = Durations(times=times, p2p_s=p2p_s)
            alone = walk(schedule.chain, count, orders, durations, has_transfers=False)
            assert alone.makespan_s == simulation.makespan_s
            assert peaks_of(name, stages, count, chunks) == peak_in_flight(
                name, stages, count, chunks
            )


@pytest.mark.parametrize("name", ["1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipev"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seconds=st.lists(st.floats(0.1, 3.0), min_size=8, max_size=8), p2p_s=st.floats(0.0, 0.5))
def test_a_pipeline_is_no_quicker_than_a_walk_of_an_alike_one_says(name, seconds, p2p_s):
    coster = Coster(small_run(), 8)
    mesh = Mesh(1, 1, 1, False, 1, "none")
    cut = coster.cut(mesh, coster.chain(name, 2, SCHEDULES[name].chunks or 3))
    late = 0.4 if SCHEDULES[name].splits_backward else 0.0
    ones = [StageTimes(forward_s=1.0, backward_s=2.0, weight_s=late) for _ in cut.pieces]
    others = [
        StageTimes(forward_s=seconds[2 * i], backward_s=seconds[2 * i + 1], weight_s=2 * late)
        for i in range(len(cut.pieces))
    ]
    walks = coster.walks
    first_s = walks.exact_s(name, cut, 8, ones, 0.1)
    bound_s = walks.bound_s(name, cut, 8, others, p2p_s)
    assert bound_s <= Walks(coster.run).exact_s(name, cut, 8, others, p2p_s) * (1 + 1e-12)
    twice = [StageTimes(*[2 * each for each in times]) for times in ones]
    assert walks.bound_s(name, cut, 8, twice, 0.2) >= 2 * first_s * (1 - 1e-12)


@pytest.mark.parametrize("overlap_tp", [True, False])
@pytest.mark.parametrize("cp_mode", ["ring", "all_gather", "ulysses"])
@pytest.mark.parametrize(
    "words",
    [("model=llama3_8b", "hardware=h100x64"), ("model=mixtral_8x7b", "hardware=mi300x64")],
)
def test_a_block_takes_least_in_a_microbatch_that_all_others_divide(words, cp_mode, overlap_tp):
    run = close_shared(load_run(list(words)).run)
    run = changed(run, parallelism={"cp_mode": cp_mode, "overlap_tp": overlap_tp})
    floors = Floors(Coster(run, 64))
    for tp, cp, split in product((1, 2, 8, 16), (1, 2, 8), (False, True)):
        ep = 2 if run.model.experts else 1
        mesh = Mesh(tp, cp, ep, split, 24, "none")
        least = floors.block_s(mesh)
        assert least > 0
        for micro in (1, 2, 3, 4, 6, 8, 12, 24):
            one = mesh._replace(micro=micro)
            assert least <= floors.mesh_s(one) * (1 + 1e-12)
            for batches in ([(1, 4, 24 // micro)], [(2, 2, 24 // micro), (4, 1, 48 // micro)]):
                of_size = floors.size_s(mesh, micro, batches)
                assert of_size <= floors.batches_s(one, batches) * (1 + 1e-12)


@settings(deadline=None)
@given(
    communication_s=st.floats(0.0, 4.0), ends=st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 4.0)),
    share=st.floats(0.0, 1.0),
)  # fmt: skip
def test_no_window_of_a_range_hides_more_than_the_bound_says(communication_s, ends, share):
    least_s, most_s = sorted(ends)
    window_s = least_s + share * (most_s - least_s)
    bound_s = least_exposed_s(communication_s, least_s, most_s)
    assert bound_s <= exposed_s(communication_s, window_s) + 1e-12


def test_the_same_answer_every_time():
    run = small_run()
    assert search_layouts(run, frozenset()) == search_layouts(run, frozenset())


def test_fixed_keys_stay_and_the_rule_of_thumb_is_never_faster():
    run = changed(small_run(), parallelism={"tp": 2, "schedule": "zb_h1"})
    found = search_layouts(run, frozenset({"tp", "schedule"}))
    assert found.best
    assert all((each.choice.tp, each.choice.schedule) == (2, "zb_h1") for each in found.best)
    best, rule = found.best[0].estimate, found.rule_of_thumb.estimate
    assert best.step.time.step_s <= rule.step.time.step_s


def test_blocks_dealt_out_by_hand_keep_their_stages_in_every_change():
    run = changed(small_run(), parallelism={"layers_per_stage": (2, 4), "pp": 2})
    found = search_layouts(run, frozenset({"pp", "vpp"}))
    assert {each.choice.pp for each in found.best} == {2}
    assert found.best_change is not None
    assert found.best_change.after.choice.pp == 2


@pytest.mark.parametrize(
    ("typed", "beside"),
    [
        # An open batch would follow the number of stages.
        ("model=gpt2_1.5b parallelism.tp=1 parallelism.pp=4 train.micro_batch_size=4", [BATCH]),
        # What follows was typed and would contradict.
        (f"{ON_EIGHT} {BATCH}=32 train.micro_batch_size=4", ["parallelism.dp"]),
        (f"{ON_EIGHT} {BATCH}=32 train.num_microbatches=8",
         ["parallelism.dp", "train.num_microbatches"]),
        (f"model=gpt2_1.5b {BATCH}=32 parallelism.pp=1 parallelism.zero_stage=3", []),
    ],
)  # fmt: skip
def test_the_best_change_gains_what_is_said_as_it_is_typed(capsys, typed, beside):
    words = ("hardware=h100x8", *typed.split())
    found = json.loads(launch(capsys, "search", "--json", *words)[1])["best_change"]
    change = [f"{key}={value}" for key, value in found["change"].items()]
    own, after = (
        json.loads(launch(capsys, "plan", "--json", *words, *more)[1])["time"]["tokens_per_s"]
        for more in ([], change)
    )
    assert found["gain"] == pytest.approx(after / own - 1)
    assert set(beside) <= set(found["change"])


def test_typed_words_and_presets_fix_keys():
    run = load_run(["parallelism=zero1", "hardware=h100x8", "model=llama3_8b"]).run
    assert "tp" in fixed_keys(["parallelism=zero1"], run)
    assert "dp" not in fixed_keys(["parallelism=zero1"], run)
    assert fixed_keys(["parallelism.pp=null", "train.micro_batch_size=2"], run) == {
        "micro_batch_size"
    }


def launch(capsys, *words):
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands_reproduce_the_prediction(capsys):
    words = ("model=llama3_8b", "hardware=h100x8", "parallelism.tp=4")
    code, out, _ = launch(capsys, "search", "--json", *words)
    document = json.loads(out)
    assert code == 0
    assert document["best_change"]["gain"] > 0
    for entry in (*document["candidates"], document["rule_of_thumb"], document["best_change"]):
        _, verb, *typed = shlex.split(entry["command"])
        code, out, _ = launch(capsys, verb, "--json", *typed)
        plan = json.loads(out)
        assert plan["time"]["step_s"] == entry["time"]["step_s"]
        assert plan["memory"]["peak_bytes"] == entry["memory"]["peak_bytes"]


def test_commands_name_the_folder_of_options_of_ones_own(capsys, tmp_path):
    folder = tmp_path / " ".join(["my"] * 30)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("defaults: [llama3_8b, _self_]\nname: mine\n")
    words = (f"--config-dir={folder}", "model=mine", "hardware=h100x8", "parallelism.tp=8")
    _, out, _ = launch(capsys, "search", "--json", *words)
    best = json.loads(out)["candidates"][0]
    _, *typed = shlex.split(best["command"])
    code, out, _ = launch(capsys, *typed, "--json")
    assert code == 0
    assert json.loads(out)["time"]["step_s"] == best["time"]["step_s"]
    _, out, _ = launch(capsys, "search", *words)
    printed = out[out.index("launch plan") :].replace("\\\n", " ")
    code, out, _ = launch(capsys, *shlex.split(printed)[1:], "--json")
    assert json.loads(out)["time"]["step_s"] == best["time"]["step_s"]


@pytest.mark.parametrize("verb", ["search", "auto"])
def test_an_open_batch_is_that_of_the_plan_of_ones_own_words(capsys, verb):
    words = ("model=llama3_8b", "hardware=h100x64", "parallelism.pp=2")
    plan = json.loads(launch(capsys, "plan", "--json", *words)[1])
    if verb == "auto":
        _, out, _ = launch(capsys, "plan", "--json", "parallelism=auto", *words)
        assert json.loads(out)["layout"]["global_batch_size"] == plan["layout"]["global_batch_size"]
        return
    found = json.loads(launch(capsys, "search", "--json", *words)[1])
    assert found["own"]["time"]["step_s"] == plan["time"]["step_s"]
    change = [f"{key}={value}" for key, value in found["best_change"]["change"].items()]
    changed = json.loads(launch(capsys, "plan", "--json", *words, *change)[1])
    gain = changed["time"]["tokens_per_s"] / plan["time"]["tokens_per_s"] - 1
    assert gain == pytest.approx(found["best_change"]["gain"])


def test_a_file_of_another_shape_is_refused_as_by_a_plan(capsys, tmp_path):
    """Searched with 16 microbatches, a file of two was planned beyond the device's peak."""
    path = tmp_path / "mine.csv"
    path.write_text("F0,F1,B0,B1\nF0,B0,F1,B1\n")
    words = ["model=llama3_8b", "hardware=h100x8", f"parallelism.schedule={path}"]
    for verb in ("plan", "search"):
        code, _, said = launch(capsys, verb, *words)
        assert code == 2
        assert "parallelism.pp=null [schedule-file-fits]" in said
        assert "Try train.num_microbatches=2." in said
    closed = ["parallelism.pp=2", "train.num_microbatches=2"]
    assert launch(capsys, "search", *words, *closed)[0] == 0


def test_columns_of_the_table_stay_apart(capsys):
    words = ("model=llama3_70b", "hardware=h100x64", "parallelism=zero3")
    _, out, _ = launch(capsys, "search", *words)
    (row,) = [line for line in out.splitlines() if line.startswith("rule")]
    assert row.split()[-1].endswith("!")
    assert row.split()[-2].endswith("%")


def test_the_screen_is_at_most_100_columns(capsys):
    code, out, _ = launch(
        capsys, "search", "model=llama3_8b", "hardware=h100x64", "parallelism.tp=2"
    )
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 100
    assert len(out.splitlines()) < 40
    assert "one change" in out


def test_where_nothing_fits_it_says_what_is_missing_and_what_would_fit(capsys):
    words = ("model=llama3_405b", "hardware=h100x8", "train.global_batch_size=64")
    code, out, err = launch(capsys, "search", "--json", *words)
    document = json.loads(out)
    assert code == 3
    assert "does not fit [memory]" in err
    assert not document["candidates"]
    assert document["missing"]["bytes"] > 0
    assert len(document["nearest"]) == 3
    for entry in document["nearest"]:
        _, verb, *typed = shlex.split(entry["command"])
        assert launch(capsys, verb, "--json", *typed)[0] == 0


def test_where_nothing_fits_no_count_reads_as_if_something_did(capsys):
    _, out, _ = launch(capsys, "search", "model=llama3_405b", "hardware=h100x8")
    (looked_at,) = [line for line in out.splitlines() if line.startswith("looked at")]
    assert "none fits" in looked_at
    assert "0 over memory" not in looked_at


def test_offload_is_searched_where_what_is_only_planned_counts(capsys):
    words = (
        "search",
        "--include-planned",
        "model=llama3_70b",
        "hardware=h100x8",
        "parallelism.tp=8",
    )
    code, out, _ = launch(capsys, *words)
    assert code == 0
    assert "; offload=" in out
    found = json.loads(launch(capsys, *words, "--json")[1])["candidates"]
    assert {one["layout"]["offload"] for one in found} <= {"optimizer", "parameters"}
    assert found[0]["memory"]["fits"]


def test_auto_takes_the_first_of_the_search(capsys):
    words = ("model=llama3_8b", "hardware=h100x8")
    _, out, _ = launch(capsys, "search", "--json", *words)
    best = json.loads(out)["candidates"][0]
    code, out, _ = launch(capsys, "plan", "--json", *words, "parallelism=auto")
    plan = json.loads(out)
    assert code == 0
    assert plan["time"]["step_s"] == best["time"]["step_s"]
    assert any("parallelism=auto" in line for line in plan["decisions"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("parallelism.tp=3",), "tp-divides-heads"),
        (("hardware.num_nodes=0",), "out-of-range"),
        (("-m", "parallelism.tp=1,2"), "unused-flag"),
    ],
)
def test_mistakes_are_named(capsys, words, rule):
    code, _, err = launch(capsys, "search", "model=llama3_8b", "hardware=h100x8", *words)
    assert code == 2
    assert f"[{rule}]" in err


@pytest.mark.parametrize("name", ["t5_3b", "gpt_1.7b", "deepseek_v2_lite"])
def test_no_layout_is_quicker_than_the_bounds_of_its_sharding_say(name):
    run = close_shared(load_run([f"model={name}", "hardware=h100x64"]).run)
    run = changed(run, train={"global_batch_size": 64})
    space, coster = build_space(run, frozenset()), Coster(run, 64)
    floors = Floors(coster)
    degrees = ((1, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (4, 2, 2), (4, 1, 4))
    for (tp, cp, pp), sharding, split in product(degrees, space.sharding, (False, True)):
        dp = 64 // (tp * cp * pp)
        stages = Stages(Mesh(tp, cp, 1, split, 1, "selective"), pp, dp, 64 // dp, ())
        for schedule, vpp in space.pipelines(pp, 64 // dp):
            choice = choice_in(stages, sharding, schedule, vpp)
            orders = list(space.orders(tp, cp, dp, pp))
            over = [coster.place((tp, cp, 1, dp, pp), order) for order in orders]
            together = floors.together_s(stages, sharding, over)
            for order in orders:
                seconds = coster.exact_s(replace(choice, order=order)) / 64
                nearest, placed = bounds_of(floors, stages, sharding, choice, order)
                assert nearest <= seconds * (1 + 1e-9)
                assert min(one.after_s(0.0) for one in together) <= seconds * (1 + 1e-9)
                assert placed <= seconds * (1 + 1e-9)
                assert placed > 0.3 * seconds


def bounds_of(floors, stages, sharding, choice, order):
    """Seconds per sample over the nearest links, and in an order of ranks."""
    coster, late = floors.coster, has_late_weights(choice.schedule)
    cut = coster.cut(stages.mesh, coster.chain_of(choice))
    links, nearest = coster.links_of(replace(choice, order=order)), coster.nearest(stages.mesh)
    found = []
    for over, floor, p2p_s in (
        (None, floors.sharding_s(stages, sharding), floors.quickest_p2p_s(stages)),
        (links, floors.placed_s(stages, sharding, links), floors.p2p_s(stages, links)),
    ):
        times = floors.times(stages, late, over or nearest, p2p_s)
        if sharding[1] == 3:
            pieces = pieces_of([cut])
            floors = Floors(coster)  # which knows of no other parts
            times = floors.sharded_times(stages, sharding, late, over, p2p_s, pieces)
        found.append(floor.after_s(floors.pipeline_s(stages, choice.schedule, late, cut, times)))
    return found


@pytest.mark.parametrize(
    "words",
    ["model=gpt_oss_20b hardware=h100x8 parallelism.ep=8",
     "model=llama3_8b hardware=h100x64 parallelism.pp=4 parallelism.dp=1",
     "recipe=llama3_70b_h100x512 parallelism.tp=4"],
)  # fmt: skip
def test_what_is_fixed_is_searched_where_the_rule_of_thumb_has_no_room_for_it(capsys, words):
    assert main(["search", *words.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for word in words.split():
        key, _, value = word.partition("=")
        if key.startswith("parallelism."):
            assert {one["layout"][key.split(".")[1]] for one in found["candidates"]} == {int(value)}


BY_HAND = "parallelism.layers_per_stage=[4,4,4,4,4,4,4,4]"
IN_FILE = "F0, F1, B0, F2, B1, F3, B2, B3\nF0, B0, F1, B1, F2, B2, F3, B3\n"


@pytest.mark.parametrize(
    "words",
    [(BY_HAND,), (BY_HAND, "parallelism.vpp=2"),
     (BY_HAND, "parallelism.vpp=2", "parallelism.pp=4", "parallelism.schedule=interleaved_1f1b"),
     ("parallelism.layers_per_stage=[7,8,8,9]", "parallelism.vpp=2", "parallelism.pp=2",
      "parallelism.schedule=zb_v"),
     ("parallelism.schedule=zb_v",), ("parallelism.schedule=dualpipev", "parallelism.tp=2"),
     ("parallelism.vpp=3",),
     ("parallelism.schedule=FILE", "parallelism.pp=2", "train.num_microbatches=4"),
     ("parallelism.schedule=FILE", "parallelism.pp=2", "train.num_microbatches=4",
      "parallelism.tp=8")],
)  # fmt: skip
def test_parts_and_orders_by_hand_are_searched_and_the_change_is_a_plan(capsys, tmp_path, words):
    file = tmp_path / "mine.csv"
    file.write_text(IN_FILE)
    asked = ["model=llama3_8b", "hardware=h100x64"]
    asked += [word.replace("FILE", str(file)) for word in words]
    assert main(["search", *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best, thumb = found["candidates"][0], found["rule_of_thumb"]
    assert best["time"]["tokens_per_s"] >= thumb["time"]["tokens_per_s"]
    if change := found["best_change"]:
        typed = [f"{key}={typed_value(value)}" for key, value in change["change"].items()]
        assert main(["plan", *asked, *typed, "--json"]) == 0
        speed = json.loads(capsys.readouterr().out)["time"]["tokens_per_s"]
        assert speed == pytest.approx(change["time"]["tokens_per_s"], rel=1e-9)
    if "FILE" not in " ".join(words) and "layers_per_stage" not in " ".join(words):
        assert main(["plan", *asked, "parallelism=auto", "--json"]) == 0
        layout = json.loads(capsys.readouterr().out)["layout"]
        assert layout["vpp"] == best["layout"]["vpp"]
