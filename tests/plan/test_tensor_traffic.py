"""Sequence parallelism and overlap in the plan: memory, bytes and time."""

from __future__ import annotations

from typing import Any

from launcher.plan.activations import block_kept_bytes
from launcher.plan.build import build_plan
from launcher.plan.execution import runtime_job
from launcher.plan.records import Plan
from tests.factory import CPU, LLAMA3_70B, TINY_GPT, h100, make_run


def plan(model: dict[str, Any] = LLAMA3_70B, **parallelism: Any) -> Plan:
    degrees = {"tp": 8, "pp": 4, "dp": 2, "recompute": "selective", **parallelism}
    precision = {"name": "bf16", "compute": "bf16"}
    train = {"micro_batch_size": 1, "num_microbatches": 8, "sequence_length": 4096}
    return build_plan(
        make_run(
            model=model, hardware=h100(), parallelism=degrees, precision=precision, train=train
        )
    )


def test_a_gpt_block_keeps_34_bytes_over_tp_per_token_and_feature() -> None:
    gpt = TINY_GPT | {"hidden_size": 1024, "num_heads": 16, "ffn_hidden_size": 4096, "dropout": 0.1}
    made = plan(
        gpt | {"max_sequence_length": 4096}, pp=1, dp=8, sequence_parallel=True
    )  # the head's share of pipeline stages plays no part
    kept = block_kept_bytes(runtime_job(made.run, made.layout), "selective")
    # Table 2 of arXiv:2205.05198; of its 34 bytes one is an attention mask that we do not keep.
    assert kept == 34 / 8 * 4096 * 1024


def test_gathers_and_scatters_take_the_place_of_all_reduces() -> None:
    plain, cut = plan(overlap_tp=False), plan(overlap_tp=False, sequence_parallel=True)
    before = {e.op: e.bytes_per_step for e in plain.communication if e.axis == "tp"}
    after = {e.op: e.bytes_per_step for e in cut.communication if e.axis == "tp"}
    assert set(before) == {"all_reduce"}
    # A scatter and a gather move what an all-reduce does; inputs are gathered once more.
    assert after["reduce_scatter"] == before["all_reduce"] / 2
    assert after["all_gather"] > after["reduce_scatter"]
    # Two norms of 8192 features per block (or one more behind the last); 7/8 of it twice.
    norms = max(2 * stage.num_layers + stage.is_last for stage in cut.stages)
    assert after["all_reduce"] == round(2 * 7 / 8 * 4 * 8192 * norms)


def test_stages_send_a_piece_of_the_sequence() -> None:
    entries = [
        entry
        for is_cut in (False, True)
        for entry in plan(sequence_parallel=is_cut).communication
        if entry.op == "send_recv"
    ]
    assert entries[0].bytes_per_step == 8 * entries[1].bytes_per_step


def test_activations_shrink_with_sequence_parallelism() -> None:
    plain, cut = plan().memory.per_stage[1], plan(sequence_parallel=True).memory.per_stage[1]
    assert cut.activations_bytes < 0.6 * plain.activations_bytes
    assert cut.parameters_bytes == plain.parameters_bytes


def test_overlap_hides_communication_and_never_adds_any() -> None:
    for is_cut in (False, True):
        shown = [
            plan(sequence_parallel=is_cut, overlap_tp=overlaps).time for overlaps in (True, False)
        ]
        assert shown[0].step_s < shown[1].step_s
        assert shown[0].exposed_communication_s < shown[1].exposed_communication_s


def test_transfers_that_nothing_hides_lengthen_the_step() -> None:
    assert plan(overlap_p2p=True).time.step_s < plan(overlap_p2p=False).time.step_s


def test_cores_that_move_the_data_themselves_hide_no_sum_behind_a_product() -> None:
    def step_s(device: dict[str, Any], overlaps: bool) -> float:
        hardware = CPU | device | {"gpus_per_node": 2}
        degrees = {"tp": 2, "pp": 1, "dp": 1, "overlap_tp": overlaps}
        return build_plan(make_run(hardware=hardware, parallelism=degrees)).time.step_s

    assert step_s({}, overlaps=True) == step_s({}, overlaps=False)
    gpu = {"device": "cuda", "name": "gpus"}
    assert step_s(gpu, overlaps=True) != step_s(gpu, overlaps=False)


def test_overlap_is_on_where_the_device_can() -> None:
    assert plan().layout.overlap_tp
    cpu = build_plan(make_run(parallelism={"tp": 2, "pp": 1, "dp": 1}))
    assert not cpu.layout.overlap_tp
    assert cpu.layout.overlap_p2p
