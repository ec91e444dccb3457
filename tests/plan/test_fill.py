"""Filling: TP inside the node, PP until it fits, DP from the rest; pinned values stay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.load import load_run
from launcher.config.rules import check_run
from launcher.errors import ConfigError
from launcher.plan.build import build_plan
from launcher.plan.fill import fill_run
from launcher.plan.schedule_peaks import peaks_of
from tests.factory import CPU, GPT2_124M, LLAMA3_70B, TINY, h100, make_run
from tests.plan.cases import GPT3_175B, LLAMA3_8B, LLAMA3_405B, OPEN, open_run
from tests.plan.work import count_calls


def degrees(run):
    layout = fill_run(run).layout
    return layout.tp, layout.pp, layout.dp


def test_a_small_model_is_replicated():
    assert degrees(open_run(GPT2_124M)) == (1, 1, 64)


def test_the_smallest_tp_that_fits_comes_before_a_pipeline():
    tp, pp, dp = degrees(open_run(LLAMA3_8B))
    assert (pp, tp * dp) == (1, 64)
    assert 1 < tp < 8
    smaller = build_plan(open_run(LLAMA3_8B, **{"parallelism.tp": tp // 2, "parallelism.pp": 1,
                                               "parallelism.recompute": "none"}))  # fmt: skip
    assert not smaller.memory.fits


def test_a_model_beyond_a_node_gets_a_pipeline_on_full_tp():
    plan = build_plan(open_run(LLAMA3_70B))
    layout = plan.layout
    assert layout.tp == 8
    assert layout.pp > 1
    assert plan.memory.fits
    fewer = build_plan(open_run(LLAMA3_70B, **{"parallelism.tp": 8, "parallelism.pp": 1}))
    assert not fewer.memory.fits
    assert "tp=8: fills the node" in plan.decisions
    assert f"dp={layout.dp}: the other devices" in plan.decisions


def test_more_stages_are_taken_where_they_spare_full_recomputation():
    plan = build_plan(open_run(GPT3_175B, num_nodes=128))
    assert plan.layout.recompute != "full"
    assert plan.memory.fits


def test_selective_costs_less_and_keeps_less_than_none():
    none, selective, full = (
        build_plan(open_run(LLAMA3_8B, **{"parallelism.recompute": mode, "parallelism.tp": 8}))
        for mode in ("none", "selective", "full")
    )
    assert none.time.compute_s < selective.time.compute_s < full.time.compute_s
    assert none.memory.peak_bytes > selective.memory.peak_bytes > full.memory.peak_bytes


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([GPT2_124M, LLAMA3_8B, LLAMA3_70B]),
    st.sampled_from([1, 2, 8, 16]),
    st.sampled_from([None, 1, 2, 4, 8]),
    st.sampled_from([None, 1, 2, 4]),
    st.sampled_from([None, 2, 8]),
    st.sampled_from([None, "none", "full"]),
    st.sampled_from([0, 1, 2, 3]),
)
def test_filled_runs_obey_the_rules_use_all_devices_and_keep_pins(
    model, num_nodes, tp, pp, dp, recompute, zero_stage
):
    pins = {"tp": tp, "pp": pp, "dp": dp, "recompute": recompute, "zero_stage": zero_stage}
    run = open_run(model, num_nodes, **{f"parallelism.{key}": value for key, value in pins.items()})
    try:
        filled = fill_run(run)
    except ConfigError:
        return
    assert check_run(filled.run) == []
    layout = filled.layout
    assert layout.tp * layout.pp * layout.dp == layout.world_size == 8 * num_nodes
    product = layout.micro_batch_size * layout.num_microbatches * layout.dp
    assert product == layout.global_batch_size
    for key, value in pins.items():
        assert value is None or getattr(layout, key) == value


def test_nothing_that_the_workers_read_stays_open():
    run = fill_run(open_run(LLAMA3_70B)).run
    for key in ("tp", "pp", "dp", "recompute"):
        assert getattr(run.parallelism, key) is not None
    for key in ("sequence_length", "micro_batch_size", "num_microbatches", "global_batch_size"):
        assert getattr(run.train, key) is not None
    assert run.hardware.gpus_per_node == 8


def test_sequence_length_is_the_models_longest_but_at_most_8192():
    assert fill_run(open_run(GPT2_124M)).layout.sequence_length == 1024
    long = LLAMA3_70B | {"max_sequence_length": 131072}
    assert fill_run(open_run(long)).layout.sequence_length == 8192


def test_on_a_cpu_there_are_as_many_processes_as_the_layout_asks_for():
    filled = fill_run(make_run(parallelism={"tp": 2, "pp": 2, "dp": None}))
    assert filled.layout.world_size == filled.run.hardware.gpus_per_node == 4
    assert degrees(make_run(parallelism=OPEN)) == (1, 1, 1)


def test_zero_3_stays_without_a_pipeline():
    assert degrees(open_run(LLAMA3_70B, **{"parallelism.zero_stage": 3}))[1] == 1


def test_kv_heads_do_not_limit_tp_where_it_is_a_multiple_of_them():
    model = LLAMA3_70B | {"num_kv_heads": 4}
    assert degrees(open_run(model))[0] == 8


def test_what_fits_nowhere_becomes_the_smallest_layout():
    plan = build_plan(open_run(LLAMA3_405B, num_nodes=1))
    assert not plan.memory.fits
    assert plan.layout.recompute == "full"
    assert plan.warnings[0].id == "does-not-fit"
    assert any("do not fit" in line for line in plan.decisions)


def test_a_batch_that_no_layout_can_share_is_a_triangle_error():
    pins = {"parallelism.tp": 1, "parallelism.pp": 1, "train.global_batch_size": 7}
    with pytest.raises(ConfigError) as error:
        fill_run(open_run(GPT2_124M, **pins))
    (finding,) = error.value.findings
    assert finding.rule == "batch-triangle"
    assert "dp=64" in finding.reason
    assert finding.fix == "train.global_batch_size=64"


def test_replicas_that_nobody_named_are_not_blamed():
    pins = {"parallelism.sequence_parallel": True, "train.sequence_length": 7}
    with pytest.raises(ConfigError) as error:
        fill_run(open_run(GPT2_124M, **pins))
    assert {finding.rule for finding in error.value.findings} == {"sequence-parallel-needs-tp"}


def test_a_batch_that_only_some_layouts_can_share_takes_one_of_those():
    layout = fill_run(open_run(LLAMA3_70B, **{"train.global_batch_size": 6})).layout
    assert layout.global_batch_size == 6
    assert 6 % layout.dp == 0


def test_pins_that_break_rules_are_all_reported():
    run = make_run(model=TINY, hardware=h100(1), parallelism={"tp": 3, "pp": 5, "dp": 2})
    with pytest.raises(ConfigError) as error:
        fill_run(run)
    rules = {finding.rule for finding in error.value.findings}
    assert {"tp-divides-heads", "pp-at-most-layers", "mesh-fills-devices"} <= rules


def test_devices_that_no_degree_can_use_are_an_error():
    with pytest.raises(ConfigError) as error:
        fill_run(make_run(hardware=h100(8), parallelism=OPEN | {"dp": 1}))
    assert error.value.findings


def test_planning_is_hardly_more_work_on_more_gpus_and_grows_with_microbatches_at_most():
    def plan(num_nodes: int, num_microbatches: int) -> int:
        degrees = {"parallelism.tp": 8, "parallelism.pp": 16}
        run = open_run(
            LLAMA3_405B, num_nodes, **degrees, **{"train.num_microbatches": num_microbatches}
        )
        return count_calls(lambda: build_plan(run))

    plan(64, 128)  # what is kept from one call to the next is there
    least = plan(64, 128)
    assert plan(2048, 128) < 2 * least
    assert plan(64, 512) < 4.4 * least


def test_local_hardware_is_left_as_it_is_where_it_says_how_many():
    run = make_run(hardware=CPU | {"gpus_per_node": 2}, parallelism={"tp": 2, "pp": 1, "dp": None})
    assert degrees(run) == (2, 1, 1)


@pytest.mark.parametrize("schedule", ["zb_1p", "zb_2p"])
def test_a_schedule_that_is_made_for_the_run_holds_no_more_than_it_was_filled_for(schedule):
    """Its order, and with it its memory, is known once all times are."""
    words = ["model=qwen2_32b", "hardware=h100x64", f"parallelism.schedule={schedule}"]
    plan = build_plan(load_run(words).run)
    assert plan.memory.fits
    assert max(plan.simulation.peak_in_flight) <= max(
        peaks_of(schedule, plan.layout.pp, plan.layout.num_microbatches, 1)
    )
