"""What a row denies is not read as what it says."""

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_facts import _number_formats
from launcher.plan.backtest_hardware import share_fabrics
from launcher.plan.backtest_rows import read_row
from launcher.plan.backtest_table import read_table
from launcher.plan.backtest_words import read_recompute, row_schedule, zero_stage

from .test_backtest import FACTS
from .test_strangers_rows import llama


@pytest.mark.parametrize("text", ["AC off", "recompute: no", "AC: none", "recompute off", "off",
                                  "activation checkpointing = false", "none"])  # fmt: skip
def test_recomputation_that_is_off_is_none(text):
    assert read_recompute(text, 32) == ("none", 1.0)


@pytest.mark.parametrize("text", ["bf16 (not fp8)", "bf16, fp8 off", "bf16 w/o fp8", "BF16 no FP8",
                                  "bf16; fp8=false"])  # fmt: skip
def test_precision_that_is_not_in_8_bits_is_not(text):
    gpu = read_row(llama(), FACTS).job.hardware.gpu
    assert _number_formats({"precision": text}, gpu) == {}


@pytest.mark.parametrize("text", ["fp8", "bf16 + fp8", "FP8 (delayed)", "float8, not tensorwise"])
def test_precision_in_8_bits_is(text):
    gpu = FACTS.gpus["h100_sxm"]
    assert _number_formats({"precision": text}, gpu) == {"matmul": "fp8"}


@pytest.mark.parametrize("notes", ["no zero bubble", "without interleaved schedule", "not zb-h1",
                                   "no virtual pipeline, no dualpipe"])  # fmt: skip
def test_schedules_that_are_denied_are_none(notes):
    assert row_schedule({"id": "x", "notes": notes}) is None


def test_a_decoder_that_is_said_to_be_no_encoder_decoder_is_one():
    said = llama(notes="decoder-only, not an encoder-decoder")
    assert read_row(said, FACTS).job.model.encoder is None


@pytest.mark.parametrize(
    ("text", "stage"),
    [("optim_grads_params", 3), ("optim_grads", 2), ("optim", 1), ("distributed optimizer", 1),
     ("shard_grad_op", 2)],
)  # fmt: skip
def test_what_megatron_fsdp_shards_is_a_stage(text, stage):
    assert zero_stage(text, 1) == stage


@pytest.mark.parametrize(("model", "billions"), [("DeepSeek-V3-16B", False), ("DeepSeek-V3", True),
                                                 ("DeepSeek-V3-671B", True)])  # fmt: skip
def test_a_size_in_the_name_is_that_of_the_model(model, billions):
    answer = predict_row(llama(model=model, params_b="", layers="", hidden="", heads="",
                               kv_heads="", ffn="", vocab=""), FACTS)  # fmt: skip
    assert (answer.status == "predicted") is billions


def test_cells_without_a_figure_have_no_unit():
    text = "gpu,gpus,step_time_ms,mem_gb\nH100,8,-,?\nH100,8,100,61\n"
    first, second = read_table(text, "runs.csv")
    assert (first["step_time_s"], first["mem_gib"]) == ("-", "?")
    assert (second["step_time_s"], second["mem_gib"]) == ("100 ms", "61 GB")


@pytest.mark.parametrize(
    ("notes", "step_s"), [("6ND", 1.579), ("6 N D", 1.579), ("6*N*D", 1.579), ("8ND", 2.099)]
)
def test_flops_of_parameters_alone_have_no_attention(notes, step_s):
    row = llama(model="x-13b", params_b=13, layers=40, hidden=5120, heads=40, kv_heads=40,
                ffn=13824, vocab=32000, seq=4096, gpus=64, tp=1, pp=1, dp=64, micro_batch=1,
                global_batch=128, tflops_per_gpu=400, step_time_s="", recompute="full",
                notes=notes)  # fmt: skip
    measured = predict_row(row, FACTS).measured_step_s
    assert measured == pytest.approx(step_s, rel=2e-3)


def test_words_of_one_row_are_not_those_of_its_neighbours():
    rows = [llama(id="a", notes="[T] 8x400Gb IB no overlap"), llama(id="b", notes="[T] compile")]
    shared = share_fabrics(rows)
    assert "overlap" not in shared[1]["notes"]
    assert "8x400Gb IB" in shared[1]["notes"]


@pytest.mark.parametrize(("seconds", "is_named"), [(1.8, False), (1800, True), (1.9, False)])
def test_a_step_time_that_its_tokens_deny_is_named(seconds, is_named):
    row = llama(gpus=8, dp=8, tp=1, pp=1, micro_batch=1, global_batch=8, seq=8192,
                step_time_s=seconds, tokens_per_s_per_gpu=4551)  # fmt: skip
    assert any("tokens per second make 1.8 s" in one
               for one in predict_row(row, FACTS).assumed) is is_named  # fmt: skip


@pytest.mark.parametrize("source", ["Megatron-LM", "Megatron-DeepSpeed", "BLOOM"])
def test_a_share_of_the_peak_is_of_model_flops_whatever_tflops_are(source):
    base = {"source": source, "step_time_s": "", "recompute": "full"}
    plain = predict_row(llama(**base | {"source": "x"}, mfu=0.4), FACTS).measured_step_s
    assert predict_row(llama(**base, mfu=0.4), FACTS).measured_step_s == plain
    said = predict_row(llama(**base, mfu=0.4, notes="HFU"), FACTS).measured_step_s
    assert said > 1.2 * plain
