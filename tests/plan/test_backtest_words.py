"""Cells as careful people write them: each is read as it is meant."""

import pytest

from launcher.cli import main
from launcher.plan.backtest import predict_row
from launcher.plan.backtest_cells import read_cells, read_number
from launcher.plan.backtest_model import known_model
from launcher.plan.backtest_rows import read_row
from launcher.plan.backtest_table import BROKEN, LINE, read_table
from launcher.plan.backtest_words import read_recompute, zero_stage

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    ("text", "stage"),
    [("P_os", 1), ("Pos+g", 2), ("P_os + g + p", 3), ("weight-update sharding", 1),
     ("Sharding-2", 2), ("Gemini", 3), ("hybrid", 3), ("dp_shard=8 dp_replicate=8", 3),
     ("dp_shard=1, dp_replicate=8", 0), ("FSDP2 (no reshard)", 2), ("SHARD_GRAD_OP", 2),
     ("fsdp2, reshard_after_forward=False", 2), ("fsdp2 (reshard)", 3), ("HSDP 8x16", 3)],
)  # fmt: skip
def test_sharding_is_read_by_any_of_its_names(text, stage):
    assert zero_stage(text.lower(), 1) == stage


def test_stages_of_a_pipeline_gather_again_only_where_the_row_says_so():
    assert zero_stage("fsdp2", 4) == 2
    assert zero_stage("fsdp2 (reshard always)", 4) == 3


def test_zero_without_a_number_is_what_its_program_shards():
    assert job(source="somebody", zero_or_fsdp="ZeRO").layout.zero_stage == 1
    assert job(source="DeepSpeed ZeRO-3", zero_or_fsdp="ZeRO").layout.zero_stage == 3
    assert (
        "optimizer state sharded over dp" in predict_row(llama(zero_or_fsdp="zero"), FACTS).assumed
    )


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("HSDP", 8), ("HSDP 4x16", 16), ("HSDP (16 shards x 4 replicas)", 16),
     ("hsdp, 2 replicas", 32), ("dp_shard=32 dp_replicate=2", 32),
     ("HSDP 8x16", 8), ("fsdp", None)],
)  # fmt: skip
def test_groups_of_shards_are_as_many_ranks_as_the_row_says(text, ranks):
    assert job(zero_or_fsdp=text).execution.shard_size == ranks


@pytest.mark.parametrize("text", ["HSDP", "FULL_SHARD", "dp_shard=64", "SHARD_GRAD_OP"])
def test_torchs_fsdp_has_torchs_kernels_by_any_of_its_names(text):
    assert job(zero_or_fsdp=text).execution.fusion == "eager"


def test_megatrons_fsdp_is_its_own_where_the_source_is_unknown_too():
    assert job(zero_or_fsdp="Megatron-FSDP").execution.fusion == "fused"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("half", ("full", 0.5)), ("5/80 layers", ("full", 1 / 16)),
     ("10 of 20 layers", ("full", 0.5)), ("full, method=block, num_layers=1", ("full", 0.1)),
     ("block (2 layers)", ("full", 0.2)), ("seq-sel", ("selective", 1.0)),
     ("attn+mlp", ("full", 1.0)), ("mla_up_proj, mlp", ("selective", 1.0)),
     ("minimal", ("selective", 1.0)), ("1 layer", ("full", 1.0))],
)  # fmt: skip
def test_recomputation_is_read_as_meant(text, meaning):
    kind, share = read_recompute(text, 80, 4, 2)
    assert (kind, pytest.approx(share)) == meaning


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("FP32 master weights, BF16 compute", "bf16"), ("fp32/bf16", "bf16"),
     ("fp32 grad accumulation", "bf16"), ("fp32", "fp32")],
)  # fmt: skip
def test_32_bits_beside_products_are_not_those_of_products(precision, kind):
    assert job(precision=precision).execution.matmul == kind


@pytest.mark.parametrize("stage", ["ddp", "zero1", "zero2"])
def test_32_bit_weights_are_4_bytes_and_their_own_master_copy(stage):
    found = job(precision="fp32", zero_or_fsdp=stage).execution
    assert (found.weight_bytes, found.gradient_bytes, found.state_bytes) == (4, 4, 8)


@pytest.mark.parametrize(
    ("notes", "fusion"),
    [("torch.compile", "compiled"), ("no torch.compile", "eager"), ("compile=False", "eager"),
     ("not compiled", "eager"), ("compiled blocks", "compiled")],
)  # fmt: skip
def test_a_note_that_nothing_is_compiled_is_none_that_it_is(notes, fusion):
    assert job(source="torchtitan", notes=notes).execution.fusion == fusion


@pytest.mark.parametrize(
    ("notes", "source", "counted"),
    [("TFLOPS hardware", "me", "hardware"), ("hardware-FLOPs utilisation", "me", "hardware"),
     ("HW TFLOP/s", "me", "hardware"), ("96 B s l h^2", "me", "hardware"),
     ("model FLOPs", "BLOOM", "model"), ("", "BLOOM", "hardware"), ("72 B s l h^2", "me", "model"),
     ("attention FLOPs halved", "me", "causal"), ("model FLOPs, causal", "me", "causal"),
     ("FLOPs ignore attention", "me", "parameters"), ("no attention dropout", "me", "model")],
)  # fmt: skip
def test_flops_are_counted_as_the_row_says_that_its_source_does(notes, source, counted):
    # By hand, per token of this model: 32 layers, hidden 4096, MLP 11008 gated, 32,000 words.
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    pairs = 4 * 32 * 4096 * 4096  # a forward of all scores and of what they weigh
    head = 4096 * 32000
    flops = {
        "parameters": 6 * (blocks + head),
        "model": 6 * (blocks + head) + 3 * pairs,
        "causal": 6 * (blocks + head) + 1.5 * pairs,
        "hardware": 8 * blocks + 6 * head + 4 * pairs,
    }[counted]
    row = llama(source=source, notes=notes, recompute="full", step_time_s="",
                tokens_per_s_per_gpu="", tflops_per_gpu=200)  # fmt: skip
    tokens = 256 * 4096 / 64
    assert read_row(row, FACTS).step_s == pytest.approx(tokens * flops / 200e12, rel=1e-3)


@pytest.mark.parametrize(
    ("notes", "count"),
    [("16 microbatches", 16), ("m=8 micro-batches", 8), ("micro batches per pipeline: 32", 32),
     ("gradient accumulation of 4", 4), ("GA=2", 2), ("accuracy 71, acc 2", 64)],
)  # fmt: skip
def test_microbatches_are_read_from_notes(notes, count):
    row = llama(micro_batch="", pp=2, tp=8, global_batch=256, notes=notes)
    assert read_row(row, FACTS).job.layout.num_microbatches == count


@pytest.mark.parametrize(
    ("batch", "samples"),
    [("1M tokens", 256), ("4M", 1024), ("3.2M tokens", 768), ("4.2e6 tokens", 1024),
     ("1048576", 256), ("65536", 65536)],
)  # fmt: skip
def test_batches_of_tokens_are_whole_samples(batch, samples):
    assert read_row(llama(global_batch=batch), FACTS).job.layout.global_batch_size == samples


@pytest.mark.parametrize(
    ("cells", "axis", "size"),
    [({"tp": "", "pp": 2, "dp": 8}, "tp", 4), ({"tp": 4, "pp": "", "dp": 8}, "pp", 2),
     ({"tp": 4, "pp": 2, "cp": "", "dp": 4}, "cp", 2), ({"gpus": "", "tp": 4, "dp": 8}, "dp", 8),
     ({"sp": "ulysses(8)"}, "cp", 8), ({"sp": 8, "tp": 8}, "cp", 1), ({"sp": "yes"}, "cp", 1),
     ({"sp": "yes (since 2022)"}, "cp", 1), ({"sp": "DS-Ulysses 4"}, "cp", 4)],
)  # fmt: skip
def test_a_degree_that_is_left_out_follows_from_the_others(cells, axis, size):
    found = read_row(llama(**cells), FACTS)
    assert getattr(found.job.layout, axis) == size
    if cells.get(axis, "") == "" and size > 1 and axis != "dp":
        assert any(word.startswith(f"{axis}={size}") for word in found.assumed)


def test_a_degree_is_not_guessed_between_two():
    answer = predict_row(llama(tp="", pp="", dp=8), FACTS)
    assert answer.reason == "dp=8: gpus / (tp x pp x cp) is 64"


def test_sequences_that_ulysses_cuts_are_exchanged_its_way():
    assert job(sp="ulysses(8)").execution.cp_mode == "ulysses"


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [("step_time_s", "5.1 ± 0.1", 5.1), ("step_time_s", "5100 +/- 20 ms", 5.1),
     ("tflops_per_gpu", "400 TFLOP/s/GPU", 400), ("tflops_per_gpu", "400 TFLOPS per GPU", 400),
     ("tokens_per_s_per_gpu", "3,100 tok/s/GPU", 3100),
     ("tokens_per_s_per_gpu", "3100 tokens/sec/GPU", 3100), ("gpus", "8x8", 64),
     ("gpus", "8 nodes x 8 GPUs", 64)],
)  # fmt: skip
def test_figures_carry_their_scatter_and_their_units(column, cell, value):
    assert read_number(read_cells({column: cell}), column) == pytest.approx(value)


def test_commas_are_decimal_where_semicolons_separate_cells():
    (row,) = read_table("id;gpu;gpus;seq;step_time_s\na;A100;8;2,048;3,528\n", "t.csv")
    assert (row["step_time_s"], row["seq"]) == ("3.528", "2,048")
    (row,) = read_table("id;gpu;gpus;tokens_per_s_per_gpu;mfu\na;A100;8;9,287;0.41\n", "t.csv")
    assert row["tokens_per_s_per_gpu"] == "9,287"


def test_commas_are_decimal_where_one_of_them_can_be_nothing_else():
    rows = read_table('id,gpu,gpus,step_time_s\na,A100,8,"3,528"\nb,A100,8,"3,5"\n', "t.csv")
    assert [row["step_time_s"] for row in rows] == ["3.528", "3.5"]
    (row,) = read_table('id,gpu,gpus,step_time_s\na,A100,8,"3,528"\n', "t.csv")
    assert row["step_time_s"] == "3,528"


@pytest.mark.parametrize("first", ["sep=;\r\n", "# my runs, of May\n\n", "\ufeffsep=;\n# runs\n"])
def test_lines_before_the_header_are_passed_over(first):
    (row,) = read_table(first + "id;gpu;gpus\na;A100;8\n", "t.csv")
    assert (row["id"], row["gpus"]) == ("a", "8")
    assert row[LINE] == str(first.count("\n") + 2)


def test_rows_that_end_early_are_broken():
    text = "id,gpu,gpus,seq\na,A100,8,2048\nb,A100\nc,H100,8\n"
    assert [row.get(BROKEN) for row in read_table(text, "t.csv")] == [
        None, "it ends before its cell of gpus", None,
    ]  # fmt: skip


def test_a_file_that_ends_inside_its_last_row_is_torn_there():
    text = "id,gpu,gpus,seq\na,A100,8,2048\nb,A100,5"
    assert [row.get(BROKEN) for row in read_table(text, "t.csv")] == [
        None, "the file ends inside this row",
    ]  # fmt: skip
    assert read_table(text.replace("b,A100,5", "b,A100,5,512"), "t.csv")[1].get(BROKEN) is None


def test_a_quote_that_closes_inside_a_cell_breaks_a_row_that_lacks_cells():
    text = 'id,source,gpu,gpus,notes\na,"somebody,A100,8,"[T] x"\nb,me,A100,8,a "word" here\n'
    assert [row.get(BROKEN) for row in read_table(text, "t.csv")] == [
        "a quote that closes inside a cell", None,
    ]  # fmt: skip


def test_a_table_that_excel_writes_as_unicode_text_is_read(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_bytes("id\tgpu\tgpus\na\tTPU\t8\n".encode("utf-16"))
    assert main(["backtest", str(path)]) == 0
    assert "not published: layers, hidden, seq" in capsys.readouterr().out


def test_a_row_that_fits_as_it_stands_is_read_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "launcher.plan.backtest.read_row", lambda *a: calls.append(a) or read_row(*a)
    )
    predict_row(llama(recompute="full", zero_or_fsdp="zero3"), FACTS)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "layers"),
    [("meta-llama/Meta-Llama-3-70B", 80), ("Meta-Llama-3-8B", 32), ("LLaMA-13B", 40),
     ("llama 7b", 32), ("GPT-175B", 96)],
)  # fmt: skip
def test_models_are_known_by_what_people_call_them(name, layers):
    model = known_model(name, FACTS.models)
    assert model is not None
    assert model.num_layers == layers


def test_parameters_may_be_counted_one_by_one():
    assert read_number(read_cells({"params_b": "6740000000"}), "params_b") == 6.74
    assert read_number(read_cells({"params_b": "6.74e9"}), "params_b") == 6.74


def test_parameters_that_the_dimensions_do_not_make_are_named():
    said = "6.74 billion parameters by its dimensions, not 8.5"
    assert said in predict_row(llama(params_b=8.5), FACTS).assumed
    assert not any("billion" in words for words in predict_row(llama(), FACTS).assumed)


@pytest.mark.parametrize("notes", ["num_experts=16, topk=2", "experts: 16 (top_k: 2)"])
def test_experts_are_read_as_options_too(notes):
    row = llama(model="a moe", params_b="", notes=notes, ep=8)
    experts = read_row(row, FACTS).job.model.experts
    assert (experts.num_experts, experts.experts_per_token) == (16, 2)
