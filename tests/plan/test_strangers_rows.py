"""Rows as strangers write them: programs, words and devices that none of our measured rows has."""

import json
from time import process_time

import pytest

from launcher.cli import main
from launcher.errors import ConfigError
from launcher.plan.backtest import predict_job, predict_row
from launcher.plan.backtest_cells import read_cells
from launcher.plan.backtest_flops import published_flops_per_token
from launcher.plan.backtest_hardware import find_devices
from launcher.plan.backtest_model import known_model
from launcher.plan.backtest_odd import MEASURED
from launcher.plan.backtest_rows import read_row
from launcher.plan.backtest_table import BROKEN, LINE, read_table
from launcher.plan.backtest_words import (
    named_stage,
    read_recompute,
    zero_stage,
)
from launcher.plan.memory import estimate_job_memory

from .test_backtest import FACTS
from .test_unseen_rows import make_row, mixture


def llama(**cells):
    """Llama 2 7B on 64 H100, of an unknown program."""
    silent = dict.fromkeys(("zero_or_fsdp", "recompute", "sp", "vpp", "cp"), "")
    return make_row("sc21_t1_3.6B", **silent | {
        "id": "x", "source": "somebody", "source_url_or_repo_path": "", "model": "llama2-7b",
        "params_b": 6.74, "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008,
        "vocab": 32000, "seq": 4096, "gpu": "H100", "gpus": 64, "tp": 1, "pp": 1, "micro_batch": 1,
        "global_batch": 256, "precision": "bf16",
    } | cells)  # fmt: skip


def job(**cells):
    return read_row(llama(**cells), FACTS).job


@pytest.mark.parametrize(
    ("text", "pp", "vpp", "meaning"),
    [("every 4 layers", 1, 1, ("full", 0.25)), ("every 2 blocks", 4, 2, ("full", 0.5)),
     ("selective 2", 1, 1, ("full", 0.5)), ("selective(3)", 1, 1, ("full", 1 / 3)),
     ("10 layers per stage", 4, 2, ("full", 0.5)),
     ("block 5", 4, 2, ("full", 0.5)), ("full (uniform, 1 layer)", 4, 1, ("full", 1.0)),
     ("flash (no recompute)", 1, 1, ("none", 1.0)), ("moe_act, norm", 1, 1, ("selective", 1.0)),
     ("mlp", 1, 1, ("full", 1.0)), ("selective: core_attn", 1, 1, ("selective", 1.0))],
)  # fmt: skip
def test_recomputation_is_of_as_many_layers_as_are_said(text, pp, vpp, meaning):
    assert read_recompute(text, 80, pp, vpp) == meaning


@pytest.mark.parametrize(
    "precision",
    [
        "fp8",
        "bf16+fp8",
        "amp_fp8",
        "amp_fp8/DEFAULT",
        "MXFP8",
        "bf16 (fp8 matmul)",
        "E4M3",
        "float8",
    ],
)
def test_products_are_in_8_bits_wherever_8_bits_are_named(precision):
    assert job(precision=precision).execution.matmul == "fp8"


@pytest.mark.parametrize("precision", ["bf16", "amp_bf16/DEFAULT", "bf16 (no fp8)", "fp16", "16"])
def test_and_in_16_elsewhere(precision):
    assert job(precision=precision).execution.matmul == "bf16"


@pytest.mark.parametrize(
    ("name", "notes", "schedule", "vpp"),
    [("x", "zero-bubble H1", "zb_h1", 1), ("x", "ZBVZeroBubble", "zb_v", 2),
     ("x", "1F1B; ZB-2p would need twice the memory", "1f1b", 1), ("a_zb-2p", "", "zb_2p", 1),
     ("a_1f1b", "beside zb-2p", "1f1b", 1), ("x", "1F1B-I", "interleaved_1f1b", 2),
     ("x", "vpp=4", "interleaved_1f1b", 4), ("x", "non-interleaved 1F1B", "1f1b", 1),
     ("a_interleaved1f1b", "", "interleaved_1f1b", 2), ("x", "zero bubble", "zb_h1", 1)],
)  # fmt: skip
def test_schedules_and_chunks_are_read_from_words(name, notes, schedule, vpp):
    layout = job(id=name, notes=notes, pp=4).layout
    assert (layout.schedule, layout.vpp) == (schedule, vpp)


@pytest.mark.parametrize("vpp", ["", 1, 2])
@pytest.mark.parametrize(
    ("notes", "least", "most"),
    [("zb-v", 1.0, 1.25), ("dualpipe", 1.0, 1.25), ("zb-h1", 1.0, 1.25), ("gpipe", 4.0, 4.6)],
)
def test_schedules_hold_the_share_of_1f1bs_activations_that_they_are_made_for(
    notes, least, most, vpp
):
    cells = {"pp": 8, "gpus": 8, "global_batch": 32, "recompute": "none", "zero_or_fsdp": "none"}
    if notes == "zb-h1" and vpp == 2:  # as many chunks as one likes: a schedule of its own
        return
    jobs = [job(**cells, notes="1F1B"), job(**cells, notes=notes, vpp=vpp)]
    plain, other = (max(_activations(each)) for each in jobs)
    assert least <= other / plain <= most


def _activations(a_job):
    stages, step = predict_job(a_job)
    memory = estimate_job_memory(a_job, stages, step.simulation.peak_in_flight)
    return [stage.activations_bytes for stage in memory.per_stage]


def test_the_zero_bubble_paper_interleaves_stages_of_one_layer():
    cells = {"source": "Zero bubble (2401.10241)", "pp": 8, "gpus": 8, "layers": 22, "model": "g"}
    assert job(**cells, notes="1F1B-I").layout.vpp == 3
    assert job(**cells, notes="1F1B").layout.vpp == 1


@pytest.mark.parametrize(
    ("cells", "gigabytes"),
    [({}, 16.6), ({"dp": 64, "gpus": ""}, 16.6), ({"gpus": 128, "tp": 2}, 8.3),
     ({"layers": 24}, 16.6)],
)  # fmt: skip
def test_a_row_worked_out_on_paper_may_leave_dp_out(cells, gigabytes):
    blank = dict.fromkeys(("layers", "dp", "tp", "pp"), "")
    row = llama(**blank | {"source": "ZeRO", "gpu": "any", "params_b": 7.5, "zero_or_fsdp": "zero2",
                           "mem_gib": 16.6, "notes": "[A] 2 + 2 + 12 bytes"} | cells)  # fmt: skip
    assert predict_row(row, FACTS).predicted_memory_bytes == pytest.approx(
        gigabytes * 1e9, rel=0.01
    )


def test_ulysses_is_known_by_its_source():
    assert job(source="DeepSpeed-Ulysses", cp=4).execution.cp_mode == "ulysses"


def test_without_a_pipeline_no_schedule_has_a_meaning():
    assert job(notes="gpipe").layout.schedule == "1f1b"
    assert job(notes="gpipe", pp=2).layout.schedule == "gpipe"


@pytest.mark.parametrize(
    ("text", "stage"),
    [("FSDP=0", 0), ("no fsdp", 0), ("FSDP: yes", 3), ("full sharding", 3), ("zero-offload", 2),
     ("ZeRO-Infinity", 3), ("optim", 1)],
)  # fmt: skip
def test_what_is_not_sharded_is_read_as_such(text, stage):
    assert zero_stage(text.lower(), 1) == stage


def test_a_source_that_names_a_stage_of_zero_has_it():
    stages = {"DeepSpeed ZeRO-3 blog": 3, "ZeRO++ (2306.10209)": 3, "ZeRO-Offload": 2}
    assert {source: named_stage(source) for source in stages} == stages
    assert named_stage("ZeRO (1910.02054) Fig. 1") is None
    assert job(source="DeepSpeed ZeRO-3 blog").layout.zero_stage == 3
    assert job(source="Megatron-LM", zero_or_fsdp="yes").layout.zero_stage == 1


@pytest.mark.parametrize("source", ["Megatron-Core", "NVIDIA NeMo", "Megatron Bridge"])
def test_megatrons_own_fsdp_keeps_its_kernels(source):
    found = job(source=source, zero_or_fsdp="fsdp")
    assert (found.execution.attention, found.execution.fusion) == ("cudnn", "fused")
    assert found.layout.zero_stage == 3
    torch = job(source="somebody", zero_or_fsdp="fsdp").execution
    assert (torch.attention, torch.fusion) == ("flash", "eager")


@pytest.mark.parametrize(
    ("source", "gpu", "kernel"),
    [("Megatron-LM", "V100", "matrix"), ("DeepSpeed", "V100", "matrix"), ("me", "V100", "matrix"),
     ("PyTorch FSDP", "V100", "flash"), ("Megatron-DeepSpeed", "A100", "matrix"),
     ("Megatron-DeepSpeed", "H100", "flash"), ("GPT-NeoX", "MI300X", "flash"),
     ("Megatron-DeepSpeed (2312.99999)", "A100", "flash"), ("LLM Foundry", "A100", "triton")],
)  # fmt: skip
def test_attention_is_what_program_date_and_device_have(source, gpu, kernel):
    assert job(source=source, gpu=gpu).execution.attention == kernel


def test_notes_name_the_version_of_flash_attention():
    assert job(source="llm-foundry", notes="FlashAttention-2").execution.attention == "flash"
    assert job(source="llm-foundry", notes="flash attention").execution.attention == "triton"


def test_megatrons_readme_overlaps_tensor_parallelism():
    assert job(source="Megatron-LM README scaling").execution.overlap_tp
    assert not job(source="Megatron-LM").execution.overlap_tp


def test_flash_attention_in_triton_is_slower_than_the_second_version_on_every_device():
    for name in ("a100_80gb", "a100_40gb", "h100_sxm", "h200_sxm"):
        gpu = FACTS.gpus[name]
        assert 1.3 < gpu.flash_attention.forward / gpu.triton_attention.forward < 1.5


@pytest.mark.parametrize("gpu", [gpu for gpu in FACTS.gpus.values() if gpu.peak_flops.fp8])
def test_8_bit_products_gain_about_what_their_peak_does(gpu):
    """The share of the peak is the share of the 16-bit peak, give or take a tenth."""
    assert 0.85 < gpu.fp8_efficiency / gpu.max_efficiency < 1.1, gpu.name


def counted(**cells):
    """Published FLOPs of a token over those of a source that counts no recomputation."""
    cells = {"recompute": "full"} | cells
    row = llama(**cells)
    plain = llama(**cells | {"source": "somebody", "notes": ""})
    return published_flops_per_token(row, read_row(row, FACTS).job) / published_flops_per_token(
        plain, read_row(plain, FACTS).job
    )


@pytest.mark.parametrize("source", ["BLOOM", "a lab (2211.05100)", "MT-NLG", "Megatron-Turing NLG",
                                    "Megatron-DeepSpeed", "BigScience"])  # fmt: skip
def test_tflops_of_megatron_deepspeed_count_recomputed_products(source):
    assert counted(source=source) == pytest.approx(4 / 3, rel=0.02)
    assert counted(source="Megatron-LM") == 1


def test_notes_decide_whether_recomputation_is_counted():
    assert counted(source="BLOOM", notes="TFLOP/s do not count recompute") == 1
    assert counted(source="a blog", notes="hardware FLOPs") == pytest.approx(4 / 3, rel=0.02)
    assert counted(source="a blog", notes="faster than MT-NLG and BLOOM") == 1


def test_papers_that_notes_name_do_not_date_a_row():
    cells = {"gpu": "A100", "notes": "layout of 2104.99999"}
    assert job(source="A lab (2405.99999)", **cells).execution.attention == "flash"
    assert job(source="A lab", **cells).execution.attention == "matrix"


def test_torchtitans_local_batch_is_shared_out_among_the_stages_microbatches():
    cells = {"micro_batch": 32, "global_batch": 256, "pp": 8, "dp": 8}
    layout = job(source="torchtitan", **cells, gpu="A100").layout
    assert (layout.micro_batch_size, layout.num_microbatches) == (4, 8)
    assert job(source="Megatron-LM", **cells, gpu="A100").layout.num_microbatches == 1


def test_utilisation_of_torchtitan_is_of_the_16_bit_peak():
    kinds = {source: read_row(llama(source=source, precision="fp8", mfu=0.5), FACTS).step_s
             for source in ("torchtitan", "NeMo")}  # fmt: skip
    assert kinds["torchtitan"] / kinds["NeMo"] == pytest.approx(2, rel=0.001)


def test_zero_keeps_gradients_in_the_models_type():
    assert job(source="DeepSpeed", zero_or_fsdp="zero2").execution.gradient_bytes == 2


def test_kernels_of_loops_around_torchs_own_models_and_of_xla():
    fusion = {source: job(source=source).execution.fusion
              for source in ("Hugging Face Trainer", "MaxText", "somebody")}  # fmt: skip
    assert fusion == {"Hugging Face Trainer": "eager", "MaxText": "compiled", "somebody": "fused"}


@pytest.mark.parametrize(
    ("gpu", "device", "node"),
    [("H100 96GB HBM3", "h100_sxm", "hgx_h100"), ("H100-96GB", "h100_96gb_hbm2e", "hgx_h100"),
     ("DGX-2 V100", "v100_sxm2_32gb", "dgx2_v100"), ("V100-SXM3", "v100_sxm2_32gb", "dgx2_v100"),
     ("V100 PCIe", "v100_sxm2_32gb", "pcie3"), ("V100-SXM2-16GB", "v100_sxm2_16gb", "dgx1_v100"),
     ("GB300 NVL72", "gb300", "nvl72"), ("B300", "b300_sxm", "hgx_b200")],
)  # fmt: skip
def test_devices_by_other_names(gpu, device, node):
    found = find_devices({"gpu": gpu, "notes": ""})
    assert (found.gpu, found.node) == (device, node)
    assert node in FACTS.nodes
    assert found.network in FACTS.networks


@pytest.mark.parametrize(
    ("name", "known"),
    [("DeepSeek-V3 671B", "deepseek_v3"), ("deepseek-ai/DeepSeek-V2-Lite", "deepseek_v2_lite"),
     ("deepseekv2-L4", "deepseek_v2"), ("Llama-3.1-70B-L12", "llama3_70b"), ("GPT-1.8B", None),
     ("gpt-18B", "gpt_18b"), ("GPT-3 175B", "gpt3_175b"), ("llama-70b", None),
     ("OLMoE-1B-7B-0924", "olmoe_1b_7b"), ("Qwen3 30B-A3B", "qwen3_30b_a3b")],
)  # fmt: skip
def test_models_are_known_by_their_names_however_they_are_written(name, known):
    found = known_model(name, FACTS.models)
    assert (found and found.name) == known


def test_experts_of_another_width_are_not_those_of_the_models_namesake():
    cells = {"model": "deepseek-v2-mini", "hidden": 2048, "heads": 16, "kv_heads": 16,
             "layers": 27, "ffn": 10944, "vocab": 102400, "params_b": 16.3}  # fmt: skip
    notes = "64 experts, top-6, expert ffn 1408, 2 shared"
    experts = read_row(mixture(**cells, notes=notes), FACTS).job.model.experts
    assert (experts.num_experts, experts.ffn_hidden_size, experts.num_shared) == (64, 1408, 2)


def test_notes_change_the_experts_of_a_known_model():
    experts = read_row(mixture(notes="cut down to 4 experts, top-1"), FACTS).job.model.experts
    assert (experts.num_experts, experts.experts_per_token) == (4, 1)
    assert experts.ffn_hidden_size == 14336


def test_the_width_of_shared_experts_is_not_that_of_routed_ones():
    sizes = {"ffn": 2560, "hidden": 3584, "heads": 28, "kv_heads": 4, "layers": 28}
    row = mixture(model="a-moe", **sizes, notes="64 experts top-8, shared expert ffn 20480")
    experts = read_row(row, FACTS).job.model.experts
    assert (experts.ffn_hidden_size, experts.num_shared) == (2560, 8)


@pytest.mark.parametrize("model", ["mamba-2.8b", "ViT-22B", "Jamba", "rwkv-7b"])
def test_blocks_of_other_kinds_are_unsupported(model):
    answer = predict_row(llama(model=model), FACTS)
    assert (answer.status, model in answer.reason) == ("unsupported", True)


def test_a_batch_that_can_only_be_tokens_is_taken_as_tokens():
    row = read_row(llama(global_batch=4194304), FACTS)
    assert row.job.layout.global_batch_size == 1024
    assert any("tokens" in part for part in row.assumed)
    assert job(global_batch="1,024 sequences").layout.global_batch_size == 1024


def test_a_silent_row_that_gathers_weights_recomputes_where_that_is_faster():
    """Whole batches recomputed beat single samples, for each of which all weights are sent."""
    sizes = {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 64, "ffn": 32768}
    row = llama(**sizes, source="PyTorch FSDP", zero_or_fsdp="fsdp", model="m", micro_batch="",
                params_b=64.9, global_batch=512, notes="1x100Gb per node")  # fmt: skip
    answer = predict_row(row, FACTS)
    kept = predict_row(row | {"recompute": "none"}, FACTS)
    assert "recompute=full" in answer.assumed
    assert answer.predicted_step_s < kept.predicted_step_s


def test_no_run_reserves_more_than_there_is():
    sizes = [predict_row(llama(gpus=8, micro_batch=m, global_batch=8 * m, recompute="none",
                               source="Megatron-LM"), FACTS) for m in (1, 2, 3, 4)]  # fmt: skip
    fitting = [size.predicted_memory_bytes for size in sizes if size.predicted_fits]
    assert 1 <= len(fitting) < len(sizes)
    gpu = FACTS.gpus["h100_sxm"]
    assert max(fitting) <= gpu.memory_bytes - gpu.context_bytes


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"),
    [(32, 4, [8, 8, 8, 8]), (22, 8, [2, 3, 3, 3, 3, 3, 3, 2]), (126, 8, [15, *[16] * 6, 15])],
)
def test_embedding_and_head_count_as_a_layer_each_where_layers_alone_do_not_come_out(
    layers, pp, sizes
):
    stages, _ = predict_job(job(layers=layers, pp=pp, model="m", params_b="", vocab=128256))
    assert [stage.num_layers for stage in stages] == sizes


def test_a_size_that_no_number_of_experts_makes_is_answered_at_once():
    answer = predict_row(mixture(model="a-moe", params_b="99999999999999999999", ep=8), FACTS)
    assert answer.status == "unsupported"
    assert "experts" in answer.reason
    answer = predict_row(llama(notes="99999999 experts"), FACTS)
    assert (answer.status, "99999999 experts" in answer.reason) == ("bad", True)


TABLE = """id,source,model,seq,gpu,gpus,micro_batch,step_time_s
good,me,llama2-7b,2048,A100,8,1,1.0

bad,me,llama2-7b,2048,A100,eight,1,1.0
deep,me,llama2-7b,99999999,A100,8,1,1.0
many,me,llama2-7b,2048,A100,8,1,1.0,a,b
other,me,llama2-7b,2048,TPU v4,8,1,1.0
"""


def test_broken_rows_are_named_with_line_cell_reason_and_fix(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text(TABLE)
    assert main(["backtest", str(path), "--json"]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert [row["status"] for row in document["rows"]] == ["predicted"] + 4 * ["unsupported"]
    assert [row["line"] for row in document["rows"]] == [2, 4, 5, 6, 7]
    bad, deep, many = shown.err.splitlines()
    assert f"{path}:4: row bad: gpus=eight [broken-row]: not a number. Try " in bad
    assert f"{path}:5: row deep: seq=99999999 [broken-row]: input should be less than" in deep
    assert f"{path}:6: row many [broken-row]: more cells than columns. Try quotes" in many


def test_rows_without_facts_break_no_table(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(line for line in TABLE.splitlines() if line[:4] in ("id,s", "othe")))
    assert main(["backtest", str(path)]) == 0
    assert "unsupported: no facts of gpu=TPU v4" in capsys.readouterr().out


HEADER, CELLS = TABLE.splitlines()[0] + ",notes", "me,llama2-7b,2048,A100,8,1,1.0"


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        (["a,{}", 'b,{},"open', "c,{}", "d,{}"], {"b": 3}),
        (["a,{}", 'b,"{}', 'c,{},"fine"', "d,{}"], {"b": 3}),
        (["a,{}", 'b,{},"two\nlines, fine"', 'd,{},"open'], {"d": 5}),
        (["a,{}", 'b,{},say "no" to it', 'c,{},5" disk'], {}),
        (["a,{}", 'b,"{}'] + 2000 * ["c,{}," + 80 * "x"], {"b": 3}),
    ],
)
def test_a_quote_that_is_not_closed_takes_no_other_row_along(lines, broken):
    rows = read_table("\n".join([HEADER, *(line.format(CELLS) for line in lines)]), "runs.csv")
    assert [row["id"] for row in rows] == [line[0] for line in lines]
    assert {row["id"]: int(row[LINE]) for row in rows if BROKEN in row} == broken
    answer = predict_row(rows[1], FACTS)
    assert answer.status == ("bad" if "b" in broken else "predicted")


def test_a_cell_that_is_longer_than_any_breaks_its_own_row():
    text = "gpu,gpus,notes\nh100,8,\nh100,8," + "x" * 200_000 + "\nh100,8,\n"
    broken = [row.get(BROKEN, "") for row in read_table(text, "t")]
    assert broken == ["", "field larger than field limit (131072)", ""]
    with pytest.raises(ConfigError, match="bad-table"):
        read_table("x" * 200_000, "t")


def test_time_to_read_a_table_grows_with_its_rows_alone():
    """Its records begin where the last one ended: counting there anew took minutes."""
    text = "gpu,gpus\n" + "h100,8\n" * 100_000
    began = process_time()
    assert len(read_table(text, "t")) == 100_000
    assert process_time() - began < 20


def test_a_header_alone_is_said_to_be_empty():
    with pytest.raises(ConfigError, match=r"runs.csv \[empty-table\]: a header, and no rows. Try"):
        read_table("id,gpu,gpus\n", "runs.csv")


def test_an_empty_table_is_said_to_be_empty():
    with pytest.raises(ConfigError, match=r"runs.csv \[empty-table\]: no rows. Try a first line"):
        read_table("\ufeff\n , \n", "runs.csv")


@pytest.mark.parametrize(
    "cells",
    [{"step_time_s": "OOM"}, {"mem_gib": "Out of memory!"}, {"notes": "[O] at step 1"},
     {"tokens_per_s_per_gpu": "did not fit"}, {"notes": "CUDA OOM at the first step"}],
)  # fmt: skip
def test_a_run_that_is_said_to_have_run_out_of_memory_did_not_fit(cells):
    figures = dict.fromkeys(MEASURED, "") | {"notes": ""}
    answer = predict_row(llama(**figures | cells), FACTS)
    assert (answer.status, answer.measured_fits, answer.measured_step_s) == (
        "predicted", False, None,
    )  # fmt: skip


def test_16_bits_of_a_device_without_bfloat16_are_float16():
    said = "precision=float16: V100-SXM2-32GB has no bfloat16"
    row = {"gpu": "V100-SXM2-32GB", "gpus_per_node": 8}
    assert said in predict_row(llama(**row, precision="bf16"), FACTS).assumed
    assert said not in predict_row(llama(**row, precision="fp16"), FACTS).assumed


def test_a_run_that_ran_out_of_memory_has_no_time_of_a_step():
    answer = predict_row(llama(step_time_s=2.0, mem_gib="OOM"), FACTS)
    assert (answer.status, answer.reason) == (
        "bad", "mem_gib=OOM: a step was measured, step_time_s=2.0",
    )  # fmt: skip


@pytest.mark.parametrize("notes", ["[T] twice as much is OOM", "OOM at micro-batch 2", ""])
def test_a_run_with_a_figure_did_fit(notes):
    assert predict_row(llama(step_time_s=2.0, notes=notes), FACTS).measured_fits is True


def test_words_that_nobody_understands_are_said_to_be_taken_for_something():
    answer = predict_row(llama(zero_or_fsdp="banana", recompute="pear", precision="fig"), FACTS)
    assert set(answer.assumed) >= {
        "zero_or_fsdp=banana: not understood, taken for ZeRO stage 0",
        "recompute=pear: not understood, taken for full",
        "precision=fig: not understood, taken for bf16",
    }


@pytest.mark.parametrize("notes", [
    "the figure is HFU", "HFU, not MFU", "[T] hardware FLOPs", "includes activation recomputation",
    "TFLOP/s incl. recompute", "recomputation is counted", "counts the recomputed forward",
])  # fmt: skip
def test_figures_that_are_said_to_count_recomputation_do(notes):
    model, length = job().model, 4096
    forward = 2 * (model.num_layers * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 * length))
    whole = 3 * (forward + 2 * 4096 * 32000)
    for recompute, again in (("none", 0), ("full", forward),
                             ("selective", 32 * 4 * 4096 * length)):  # fmt: skip
        cells = llama(recompute=recompute, notes=notes)
        found = published_flops_per_token(read_cells(cells), read_row(cells, FACTS).job)
        assert found == pytest.approx(whole + again)


@pytest.mark.parametrize("notes", [
    "MFU, HFU 55.0", "MFU; HFU is 0.5", "MFU (not HFU)", "does not include recomputation",
    "excluding activation recomputation", "recomputation is not counted", "", "MFU/HFU 0.4/0.5",
])  # fmt: skip
def test_and_others_do_not(notes):
    cells = llama(recompute="full", notes=notes)
    plain = llama(recompute="none")
    flops = [published_flops_per_token(read_cells(row), read_row(row, FACTS).job)
             for row in (cells, plain)]  # fmt: skip
    assert flops[0] == flops[1]


def test_names_of_rows_keep_the_report_in_line(capsys, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(f'{HEADER}\n"two\nlines \x1b[31m",{CELLS}\n')
    assert main(["backtest", str(path)]) == 0
    assert "two lines \\x1b[31m" in capsys.readouterr().out.splitlines()[2]
