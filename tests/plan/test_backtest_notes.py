"""Notes as careful people write them: kernels, overlap, memory's metric and networks."""

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_hardware import stated_bandwidth
from launcher.plan.backtest_rows import INTERLEAVED, read_row

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    "notes",
    ["no flash", "w/o FlashAttention", "not flash-attn", "flash_attn=False", "FlashAttention: off"],
)
def test_notes_that_deny_flash_attention_do_not_name_it(notes):
    assert job(notes=notes).execution.attention == "matrix"
    assert job(source="Megatron-DeepSpeed", gpu="A100", notes="xformers").execution.attention == (
        "flash"
    )


@pytest.mark.parametrize(
    ("notes", "reserved", "process"),
    [("", True, False), ("mem = max allocated; reserved 70 GiB", False, False),
     ("mem = max reserved (allocated 61 GiB)", True, False), ("nvidia-smi", True, True)],
)  # fmt: skip
def test_memory_is_of_the_measure_that_is_named_first(notes, reserved, process):
    found = job(notes=notes).execution
    assert (found.reserved, found.process) == (reserved, process)


@pytest.mark.parametrize(
    ("notes", "waits"),
    [("no comm overlap", {"tp", "dp", "p2p"}), ("without overlap", {"tp", "dp", "p2p"}),
     ("no communication/computation overlap", {"tp", "dp", "p2p"}),
     ("overlap disabled", {"tp", "dp", "p2p"}), ("no tp comm overlap", {"tp"}),
     ("dp overlap off", {"dp"}), ("", set())],
)  # fmt: skip
def test_overlap_is_denied_of_one_axis_or_of_all(notes, waits):
    found = job(source="NeMo 24.07", notes=notes, pp=4, vpp=2, tp=4).execution
    overlaps = {"tp": found.overlap_tp, "dp": found.overlap_dp, "p2p": found.overlap_p2p}
    assert {axis for axis, is_on in overlaps.items() if not is_on} == waits


@pytest.mark.parametrize(
    ("cells", "is_parallel"),
    [({"notes": "parallel attention and MLP"}, True), ({"notes": "gpt_j_residual"}, True),
     ({"notes": "sequence parallel attention"}, False), ({"model": "Falcon-40B"}, True),
     ({"model": "palmyra"}, False), ({"model": "napalm"}, False)],
)  # fmt: skip
def test_blocks_in_parallel_are_known_by_notes_and_by_the_model(cells, is_parallel):
    assert job(**cells).execution.parallel_block is is_parallel


@pytest.mark.parametrize(
    ("notes", "masks"),
    [("", True), ("no dropout", False), ("dropout 0.0", False), ("dropout=0.1", True)],
)
def test_dropout_that_is_off_leaves_no_masks(notes, masks):
    found = job(source="Narayanan (2104.04473)", gpu="A100", notes=notes).execution
    assert found.dropout_masks is masks


@pytest.mark.parametrize(
    ("notes", "place"),
    [("activation offloading", "none"), ("activations off-loaded", "none"),
     ("offloads activations; optimizer offload", "optimizer"), ("CPU offload", "optimizer")],
)  # fmt: skip
def test_offloaded_activations_are_no_offloaded_optimizer(notes, place):
    assert job(notes=notes).execution.offload == place


@pytest.mark.parametrize(("notes", "fused"), [("no fused CE", False), ("fused CE", True)])
def test_a_loss_that_is_not_fused_is_not(notes, fused):
    assert job(source="torchtitan", notes=notes).execution.fused_loss is fused


@pytest.mark.parametrize(
    ("notes", "gigabits"),
    [("8x400G NDR", 400), ("4x100GbE", 50), ("8x80G A100", None), ("8x NDR400", 400),
     ("4 NICs of 200 Gb/s per node", 100), ("8 ConnectX-7 400Gb/s NICs", 400),
     ("1 NIC 100 Gbps per GPU", 100), ("25 Gbps Ethernet", 3.125), ("AWS p3.16xlarge", 3.125),
     ("4x Omni-Path 100 Gbps per node", 50), ("Omni-Path 100 Gbps x 4", 50), ("4x OPA", 50),
     ("200 Gb/s InfiniBand x8 per node", 200), ("4x Omni-Path 100", 50), ("2x100G TCP", 25),
     ("4x200G Slingshot-11", 100), ("25GbE", 3.125), ("10 GbE", 1.25), ("4x 100GbE", 50),
     ("1.6 Tb/s InfiniBand", 200), ("51.2 Tb/s switches", None), ("0.8 Tb/s per GPU", 800)],
)  # fmt: skip
def test_adapters_of_a_node_are_counted(notes, gigabits):
    found = stated_bandwidth({"notes": notes}, 8)
    assert found == (None if gigabits is None else gigabits * 1e9 / 8)


@pytest.mark.parametrize(
    ("gpu", "notes", "gigabits"),
    [("A100", "AWS p4d.24xlarge", 50), ("A100", "p4de", 50), ("V100", "p3dn.24xlarge", 12.5),
     ("H100", "p5 instances", 400), ("A100", "p5-like name", 200), ("A100", "step 5", 200)],
)  # fmt: skip
def test_instances_that_notes_name_have_their_fabric(gpu, notes, gigabits):
    hardware = read_row(llama(gpu=gpu, notes=notes), FACTS).job.hardware
    assert hardware.network.bandwidth == gigabits * 1e9 / 8


@pytest.mark.parametrize(
    "cells",
    [{"step_time_s": "N/A (OOM)"}, {"step_time_s": "", "mem_gib": ">80", "notes": "[O]"},
     {"step_time_s": "", "mem_gib": 80, "notes": "[O] tried 81"},
     {"step_time_s": "oom", "mem_gib": 80}],
)  # fmt: skip
def test_a_run_that_did_not_fit_has_measured_no_memory(cells):
    found = read_row(llama(**cells), FACTS)
    assert (found.did_not_fit, found.memory_bytes) == (True, None)
    assert not read_row(llama(step_time_s="3.5 (OOM at mb 4)"), FACTS).did_not_fit


def test_what_a_program_shards_is_not_all_that_a_silent_row_may_have_sharded():
    # 34 B in one piece: its optimizer state alone over 64 devices leaves 136 GB on each
    cells = {"layers": 48, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 22016, "params_b": 34}
    answer = predict_row(llama(source="Megatron-LM", model="llama2-34b", **cells), FACTS)
    assert answer.predicted_fits
    assert any(words in answer.assumed for words in ("zero_or_fsdp=zero2", "zero_or_fsdp=zero3"))


@pytest.mark.parametrize(
    ("cells", "mode"),
    [({"source": "Megatron-LM"}, "ring"), ({"source": "torchtitan"}, "all_gather"),
     ({"source": "torchtitan", "notes": "ring attention"}, "ring"),
     ({"source": "Llama 3 (2407.21783)"}, "all_gather"),
     ({"notes": "CP by all-gather"}, "all_gather"), ({"notes": "KV all-gather"}, "all_gather"),
     ({"cp": "4 (ulysses)"}, "ulysses"), ({"source": "torchtitan", "cp": "4 (ring)"}, "ring")],
)  # fmt: skip
def test_how_a_cut_sequence_is_exchanged_is_read(cells, mode):
    assert job(**{"cp": 4} | cells).execution.cp_mode == mode


@pytest.mark.parametrize(
    ("source", "notes", "attention"),
    [("Megatron-Core 0.9", "FLOPs by eq. 3 of SC21 (2104.04473)", "cudnn"),
     ("MegaScale", "MFU as in 2204.02311", "cudnn"), ("InternEvo", "ZeRO of 1910.02054", "flash"),
     ("some lab", "TFLOP/s as 2104.04473 counts them", "flash"),
     ("some lab", "TFLOP/s by Narayanan's formula", "flash"),
     ("some lab", "from arXiv 2110.12345; MFU", "matrix"),
     ("some lab (2110.12345)", "MFU", "matrix")],
)  # fmt: skip
def test_papers_that_notes_name_beside_are_not_the_rows_own(source, notes, attention):
    found = job(source=source, notes=notes, gpu="A100", seq=2048)
    assert found.execution.attention == attention


@pytest.mark.parametrize(
    "notes",
    [
        "no FSDP",
        "compared with Megatron-LM",
        "faster than DeepSpeed",
        "zero-shot",
        "on a Titan RTX",
    ],
)
def test_programs_that_notes_deny_or_compare_with_are_not_the_rows(notes):
    assert job(notes=notes, gpu="A100").execution == job(notes="", gpu="A100").execution


@pytest.mark.parametrize(
    ("name", "notes", "schedule"),
    [("zb_14B", "1F1B", "1f1b"), ("paper-zb", "zb-2p", "zb_2p"), ("a zb", "1F1B-I", INTERLEAVED),
     ("paper-zb", "", "zb_h1"), ("x_zb", "H1 of it", "zb_h1"), ("x_1f1b", "beside zb-2p", "1f1b")],
)  # fmt: skip
def test_notes_that_name_a_schedule_go_before_a_name_that_only_hints_at_one(name, notes, schedule):
    assert job(id=name, notes=notes, pp=4).layout.schedule == schedule
