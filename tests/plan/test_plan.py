"""The whole plan: its parts add up, its JSON is the contract, its report is one screen."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from launcher.cli import main
from launcher.plan.audit import _ep_crosses_nodes
from launcher.plan.audit_fix import FOR_SPEED, MENDED, typed
from launcher.plan.build import build_plan
from launcher.plan.records import layout_from_json, stages_from_json
from launcher.plan.report import render_report
from launcher.plan.work import model_flops_per_token
from tests.factory import GPT2_124M, LLAMA3_70B, TINY_GPT, h100, make_run
from tests.plan.cases import GPT3_175B, LLAMA3_8B, LLAMA3_405B, open_run

PLANS = {
    "tiny": lambda: build_plan(make_run(parallelism={"tp": 2, "pp": 2, "dp": 1})),
    "tied": lambda: build_plan(make_run(model=TINY_GPT, parallelism={"tp": 2, "pp": 2, "dp": 2})),
    "gpt2": lambda: build_plan(open_run(GPT2_124M)),
    "8b": lambda: build_plan(open_run(LLAMA3_8B)),
    "70b": lambda: build_plan(open_run(LLAMA3_70B)),
    "175b": lambda: build_plan(open_run(GPT3_175B, 128)),
    "405b": lambda: build_plan(open_run(LLAMA3_405B, 2048)),
    "too big": lambda: build_plan(open_run(LLAMA3_405B, 1)),
    "16 stages": lambda: build_plan(open_run(GPT3_175B, 128, **{"parallelism.pp": 16})),
    "zero 3": lambda: build_plan(open_run(LLAMA3_8B, **{"parallelism.zero_stage": 3})),
}


@pytest.fixture(scope="module", params=list(PLANS))
def plan(request):
    return PLANS[request.param]()


def test_parts_of_the_step_add_up(plan):
    time = plan.time
    parts = time.compute_s + time.bubble_s + time.exposed_communication_s + time.optimizer_s
    assert time.step_s == pytest.approx(parts)
    assert min(time.compute_s, time.optimizer_s) > 0
    assert min(time.bubble_s, time.exposed_communication_s) >= 0


def test_speed_follows_from_the_step(plan):
    layout, time = plan.layout, plan.time
    tokens = layout.global_batch_size * layout.sequence_length
    assert time.tokens_per_s == pytest.approx(tokens / time.step_s)
    flops = model_flops_per_token(plan.run.model, layout.sequence_length)
    per_gpu = time.tokens_per_s_per_gpu * flops
    assert time.tflops_per_gpu == pytest.approx(per_gpu / 1e12)
    peak = getattr(plan.run.hardware.gpu.peak_flops, plan.run.precision.compute)
    assert time.mfu == pytest.approx(per_gpu / peak)
    assert 0 < time.mfu < plan.run.hardware.gpu.max_efficiency


def test_stages_cover_the_model_once(plan):
    layers = [layer for s in plan.stages for layer in range(s.first_layer, s.end_layer)]
    assert layers == list(range(plan.run.model.num_layers))
    assert [s.is_first for s in plan.stages] == [True] + [False] * (plan.layout.pp - 1)
    assert [s.is_last for s in plan.stages] == [False] * (plan.layout.pp - 1) + [True]


def test_json_is_the_contract_and_can_be_read_back(plan):
    document = json.loads(json.dumps(plan.to_json()))
    assert set(document) >= {"run", "layout", "stages", "memory", "time", "communication",
                             "checkpoint_bytes", "warnings"}  # fmt: skip
    assert layout_from_json(document) == plan.layout
    assert stages_from_json(document) == plan.stages
    assert document["memory"]["per_stage"][0]["total_bytes"] > 0


def test_axes_with_one_rank_are_silent(plan):
    sizes = {"tp": plan.layout.tp, "pp": plan.layout.pp, "dp": plan.layout.dp}
    axes = {entry.axis for entry in plan.communication} - {"embedding"}
    assert axes == {axis for axis, size in sizes.items() if size > 1}
    for entry in plan.communication:
        assert entry.bytes_per_step > 0
        assert entry.seconds_per_step > 0


def test_the_report_is_one_screen(plan):
    lines = render_report(plan).splitlines()
    assert len(lines) < 45
    assert max(len(line) for line in lines) <= 80, "a terminal as it opens"
    assert not any(line.endswith("...") for line in lines), "nothing is cut off"


def test_the_report_says_tokens_fit_and_step():
    text = render_report(PLANS["70b"]())
    assert "tokens/step 524,288 = 4 dp x 16 microbatches x 1 x 8192" in text
    assert "fits: the fullest rank takes" in text
    assert "tp=8: fills the node" in text
    assert "node 0: ranks 0-7: pp 0, dp 0, tp 0-7" in text
    assert "DOES NOT FIT" in render_report(PLANS["too big"]())


def test_the_same_run_gives_the_same_plan():
    assert PLANS["70b"]().to_json() == PLANS["70b"]().to_json()


def test_checkpoint_holds_float32_weights_and_two_moments():
    assert PLANS["gpt2"]().checkpoint_bytes == 12 * 124_439_808


def test_only_a_tied_pipeline_has_an_embedding_axis():
    assert "embedding" in {entry.axis for entry in PLANS["tied"]().communication}
    assert "embedding" not in {entry.axis for entry in PLANS["tiny"]().communication}


def warnings(**overrides):
    return {w.id: w for w in build_plan(make_run(**overrides)).warnings}


def test_tp_across_nodes_is_a_warning_with_a_fix():
    found = warnings(model=LLAMA3_70B, hardware=h100(2, 4), parallelism={"tp": 8, "pp": 1, "dp": 1})
    assert found["tp-crosses-nodes"].fix == "parallelism.tp=4 parallelism.dp=null"


def test_uneven_rails_are_mended_by_what_makes_them_even():
    uneven = {"tp": 2, "pp": 2, "dp": 6}
    found = warnings(model=LLAMA3_70B, hardware=h100(3), parallelism=uneven)
    assert found["uneven-rails"].fix == "hardware.num_nodes=4 parallelism.dp=null"
    even = warnings(model=LLAMA3_70B, hardware=h100(4), parallelism=uneven | {"dp": 8})
    assert "uneven-rails" not in even


def test_groups_that_only_some_nodes_cut_are_warned_about_and_mended():
    """tp=4 on nodes of six: ranks 4 to 7 lie on two of them."""
    hardware = h100(2, 6)
    found = warnings(model=LLAMA3_70B | {"num_layers": 3}, hardware=hardware,
                     parallelism={"tp": 4, "pp": 1, "dp": None})  # fmt: skip
    assert found["tp-crosses-nodes"].fix == "parallelism.tp=2"
    assert found["uneven-rails"].fix == "parallelism.tp=2"
    mended = warnings(model=LLAMA3_70B | {"num_layers": 3}, hardware=hardware,
                      parallelism={"tp": 2, "pp": 1, "dp": None})  # fmt: skip
    assert not {"tp-crosses-nodes", "uneven-rails"} & set(mended)


def test_groups_whose_neighbours_are_whole_nodes_apart_are_even():
    """Every adapter carries one rank of a group, though every other node carries none of it."""
    found = warnings(model=LLAMA3_70B, hardware=h100(8), parallelism={"tp": 16, "pp": 1, "dp": 4})
    assert "tp-crosses-nodes" in found
    assert "uneven-rails" not in found


def test_a_fix_leaves_a_plan_that_fits_one_that_fits():
    """tp=8 alone is twice the weights on every device: stages make up for it."""
    layout = {"tp": 16, "pp": 1, "dp": 4, "zero_stage": 1, "recompute": "full"}
    asked = make_run(model=LLAMA3_70B, hardware=h100(8), parallelism=layout)
    made = build_plan(asked)
    assert made.memory.fits
    assert not build_plan(typed(asked, "parallelism.tp=8 parallelism.dp=null")).memory.fits
    fix = {warning.id: warning.fix for warning in made.warnings}["tp-crosses-nodes"]
    mended = build_plan(typed(asked, fix))
    assert mended.memory.fits
    assert "tp-crosses-nodes" not in [warning.id for warning in mended.warnings]


ODD = [
    {"hardware": (4, 6), "parallelism": {"tp": 8, "order": ("pp", "dp", "cp", "tp")}},
    {"hardware": (2, 8), "parallelism": {"tp": 16, "order": ("dp", "tp", "cp", "pp")}},
    {"hardware": (3, 8), "parallelism": {"tp": 2, "pp": 2, "dp": None}},
    {"hardware": (6, 6), "parallelism": {"tp": 4}},
    {"hardware": (4, 4), "parallelism": {"tp": 16, "pp": 1, "dp": 1}},
    {"hardware": (2, 4), "parallelism": {"pp": 8}, "train": {"num_microbatches": 2}},
]


@pytest.mark.parametrize("case", ODD, ids=lambda case: str(case["parallelism"]))
def test_fixes_of_warnings_are_legal_and_mend_what_they_are_for(case):
    asked = make_run(
        model=LLAMA3_70B | {"num_layers": 8}, hardware=h100(*case["hardware"]),
        precision={"name": "bf16", "compute": "bf16"},
        parallelism={"tp": None, "pp": None, "dp": None} | case["parallelism"],
        train={"micro_batch_size": 1, "num_microbatches": None} | case.get("train", {}),
    )  # fmt: skip
    plan = build_plan(asked)
    assert plan.warnings
    for warning in plan.warnings:
        if not warning.fix:
            continue
        changed = build_plan(typed(asked, warning.fix))
        if warning.id in MENDED:
            assert warning.id not in {one.id for one in changed.warnings}
        if warning.id in FOR_SPEED:
            assert changed.time.tokens_per_s > plan.time.tokens_per_s


def test_measured_kernels_of_another_type_are_a_warning():
    row = {"kind": "matmul", "m": 64, "n": 64, "k": 64, "seconds": 1e-3}
    for measured, is_other in (("bf16", True), ("fp32", False)):
        hardware = h100(1)
        hardware["gpu"] = hardware["gpu"] | {"kernels": [row | {"type": measured}]}
        found = warnings(hardware=hardware, parallelism={"tp": 1, "pp": 1, "dp": 8})
        assert ("kernels-of-another-type" in found) == is_other


def test_few_microbatches_are_a_warning_with_a_fix():
    found = warnings(parallelism={"pp": 4}, **{"train.num_microbatches": 2})
    assert found["few-microbatches"].fix == "train.num_microbatches=16"
    enough = warnings(parallelism={"pp": 4}, **{"train.num_microbatches": 32})
    assert "few-microbatches" not in enough


@pytest.mark.parametrize(
    "degrees", [{"tp": 1, "pp": 4, "dp": 2}, {"pp": 4, "tp": None, "dp": None}]
)
def test_a_fix_opens_what_it_would_contradict(degrees):
    batch = {"num_microbatches": None, "global_batch_size": 8}
    found = warnings(hardware=h100(1), parallelism=degrees, train=batch)
    fix = "train.num_microbatches=16 train.global_batch_size=null"
    assert found["few-microbatches"].fix == fix


@pytest.mark.parametrize(
    ("layers", "slowest", "fix"),
    [((38, 14, 14, 14), 0, "parallelism.layers_per_stage=null"), ((22, 20, 20, 18), None, None)],
)
def test_stages_that_wait_for_one_are_warned_about_and_mended(layers, slowest, fix):
    degrees = {"tp": 8, "pp": 4, "dp": 2, "layers_per_stage": layers}
    run = open_run(LLAMA3_70B, **{f"parallelism.{key}": value for key, value in degrees.items()})
    plan = build_plan(run)
    found = [each for each in plan.warnings if each.id == "uneven-stages"]
    if slowest is None:
        assert not found
        return
    assert plan.time.bubble_fraction < 0.05  # the busiest stage hardly waits
    assert f"stage {slowest} " in found[0].message
    assert found[0].fix == fix
    better = build_plan(typed(run, fix))
    assert better.time.tokens_per_s > plan.time.tokens_per_s
    assert "uneven-stages" not in {each.id for each in better.warnings}


@pytest.mark.parametrize("count", [4, 64])
def test_a_schedule_without_overlap_is_told_another_one(count):
    degrees = {"tp": 8, "pp": 4, "dp": 2, "schedule": "naive"}
    run = open_run(
        LLAMA3_8B,
        **{f"parallelism.{key}": value for key, value in degrees.items()},
        **{"train.num_microbatches": count},
    )
    plan = build_plan(run)
    (found,) = [each for each in plan.warnings if each.id == "serial-pipeline"]
    assert found.fix == "parallelism.schedule=1f1b"
    assert build_plan(typed(run, found.fix)).time.step_s < plan.time.step_s


@pytest.mark.parametrize(
    ("degrees", "given_up"),
    [
        ({"tp": 8, "pp": 4, "dp": 2, "layers_per_stage": (50, 10, 10, 10)}, "layers_per_stage"),
        (
            {"tp": 2, "pp": 1, "dp": 32, "recompute": "full", "shard_size": 8, "zero_stage": 3,
             "engine": "fsdp2"},
            "shard_size",
        ),
    ],
)  # fmt: skip
def test_what_was_decided_by_hand_and_does_not_fit_is_given_up_first(degrees, given_up):
    run = open_run(LLAMA3_70B, **{f"parallelism.{key}": value for key, value in degrees.items()})
    (lacking,) = [each for each in build_plan(run).warnings if each.id == "does-not-fit"]
    assert lacking.fix == f"parallelism.{given_up}=null"
    assert build_plan(typed(run, lacking.fix)).memory.fits


def test_gpipe_and_1f1b_take_the_same_time_but_not_the_same_memory():
    pipelines = {
        name: build_plan(make_run(parallelism={"pp": 4, "schedule": name},
                                  **{"train.num_microbatches": 16}))
        for name in ("gpipe", "1f1b")
    }  # fmt: skip
    assert pipelines["gpipe"].memory.peak_bytes > pipelines["1f1b"].memory.peak_bytes
    assert pipelines["gpipe"].time.compute_s == pipelines["1f1b"].time.compute_s


@pytest.mark.parametrize(("pp", "is_advised"), [(16, True), (4, False)])
def test_less_recomputation_is_advised_only_where_it_fits(pp, is_advised):
    pins = {"parallelism.tp": 8, "parallelism.pp": pp, "train.num_microbatches": 4 * pp}
    model = GPT3_175B if is_advised else LLAMA3_70B
    full = build_plan(open_run(model, 128, **pins, **{"parallelism.recompute": "full"}))
    none = build_plan(open_run(model, 128, **pins, **{"parallelism.recompute": "none"}))
    assert none.memory.fits == is_advised
    assert ("idle-memory" in {w.id for w in full.warnings}) == is_advised


def test_expert_groups_that_leave_the_node_are_warned_about():
    layout = replace(build_plan(make_run(parallelism={"dp": 4})).layout, ep=16, gpus_per_node=8)
    crossing = SimpleNamespace(axis="ep", crosses_nodes=True)
    warning = _ep_crosses_nodes(layout, SimpleNamespace(communication=(crossing,)))
    assert warning.id == "ep-crosses-nodes"
    assert warning.fix == "parallelism.ep=8"


def test_data_parallel_groups_that_fill_nodes_unevenly_are_warned_about():
    plan = build_plan(
        make_run(model=LLAMA3_70B | {"num_layers": 3}, hardware=h100(3),
                 parallelism={"tp": 2, "pp": 2, "dp": 6})
    )  # fmt: skip
    assert "uneven-rails" in {warning.id for warning in plan.warnings}


def test_a_price_gives_the_run_a_cost():
    hardware = h100(1) | {"price_per_gpu_hour": 2.5}
    time = build_plan(make_run(hardware=hardware, parallelism={"dp": 8})).time
    assert time.cost == 2.5 * time.gpu_hours
    assert build_plan(make_run(hardware=h100(1), parallelism={"dp": 8})).time.cost is None


def test_memory_states_its_own_error_and_the_fit_its_margin():
    memory = build_plan(make_run(hardware=h100(1), parallelism={"dp": 8})).memory
    assert memory.error_bytes == int(0.105 * memory.peak_bytes)
    assert memory.usable_bytes == int(0.94 * memory.capacity_bytes)


IMPOSSIBLE = {
    "gpu.peak_flops.bf16": (1e-300, 1e308), "gpu.memory_bandwidth": (0.5, 1e308),
    "node.bandwidth": (1e-300, 1e308), "network.bandwidth": (1e-9,),
    "network.oversubscription": (1e308,), "gpu.step_overhead_s": (1e308,),
    "gpu.op_overhead_s": (1e300,), "node.latency_s": (1e300,), "price_per_gpu_hour": (1e300,),
    "speeds": ("[1,1e-300]",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values]
)
def test_no_hardware_makes_figures_that_are_no_numbers(capsys, key, value):
    words = ("model=llama3_8b", "hardware=h100x8", "hardware.num_nodes=2", "parallelism.pp=2")
    assert main(["plan", *words, f"hardware.{key}={value}"]) == 2
    assert "[out-of-range]" in capsys.readouterr().err


def test_the_slowest_hardware_that_is_legal_has_figures(capsys):
    slow = ("gpu.peak_flops.bf16=1", "gpu.memory_bandwidth=1", "node.bandwidth=1",
            "network.bandwidth=1", "network.oversubscription=1e6", "node.latency_s=1e6",
            "gpu.op_overhead_s=1e6", "price_per_gpu_hour=1e9")  # fmt: skip
    words = ["plan", "--json", "model=llama3_8b", "hardware=h100x64", "parallelism.tp=8"]
    assert main([*words, *(f"hardware.{each}" for each in slow)]) == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_bound_is_told_with_all_its_digits(capsys):
    words = ("plan", "model=llama3_8b", "hardware=h100x8")
    assert main([*words, f"hardware.gpu.memory_bytes={10**25}"]) == 2
    fix = capsys.readouterr().err.partition("Try ")[2].strip().rstrip(".")
    assert main([*words, fix]) == 0
