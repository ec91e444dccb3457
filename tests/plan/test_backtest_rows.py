"""Tables as people write them: every row is predicted or says why not, whatever its cells hold."""

import random

import pytest

from launcher.plan.backtest import backtest, predict_row
from launcher.plan.backtest_rows import read_row
from launcher.plan.backtest_table import read_table

from .test_backtest import FACTS, ROW, ROWS

SPELLINGS = {
    "gpu": ["A100", "NVIDIA A100 80GB PCIe", "H100", "h100-sxm5-80gb", "H200", "B200", "GB200",
            "V100", "MI250X", "MI300X", "TPU v4", "Trainium2", "RTX 3090", "GH200", "any"],
    "zero_or_fsdp": ["ZeRO-3", "zero 2", "stage 1", "FSDP", "HSDP", "hybrid_shard", "ddp", "none",
                     "ZeRO-3 with offload", "dist-opt", "zero++", "3"],
    "recompute": ["yes", "no", "FULL", "selective", "attention", "every 4 layers", "25 %", "off",
                  "block", "uniform", "full on 3 layers", "first 2 layers", "op SAC",
                  "every other"],
    "precision": ["BF16", "fp16", "FP8", "mxfp8", "fp8 hybrid", "fp32", "tf32", "bf16-mixed",
                  "int8", "NVFP4", "amp"],
    "sp": ["Yes", "true", "no", "0", "1", "off"],
    "notes": ["", "[T]", "[O] out of memory", "4x200Gb HDR", "NVLink only", "optimizer offload",
              "gas 8", "64 experts, top-6, expert ffn 1408", "zb-h1", "1:2 taper",
              "RoCE", "no flash"],
    "model": ["t5-11b", "mixtral-8x7b", "Llama-3.1-70B", "deepseek-v3", "foo-moe-a3b", "x",
              "gpt-8x2b"],
    "seq": ["4k", "4,096", "2048", "131072", "1"],
    "global_batch": ["1,024", "4M tokens", "256", "1", "7"],
    "mfu": ["41.5%", "0.415", "41.5", "1.0"],
    "step_time_s": ["850 ms", "3.5 s", "~4", "1e3"],
    "mem_gib": ["66.5 GiB", "80 GB", "65536 MiB"],
}  # fmt: skip
"""Ways to write cells, right and unusual."""

BROKEN = ["", "-", "n/a", "?", "0", "-1", "1.5", "eight", "1e400", "nan", "inf", "1e12", "3", "7",
          "16", "1,5", "8 (inferred)", "é", "=1+1", "'; drop", "99999999999999999999"]  # fmt: skip
"""What may stand in any cell."""


def is_sound(answer):
    """A prediction that could be true, or a reason."""
    if answer.status != "predicted":
        assert answer.reason
        assert not answer.reason.startswith("internal"), (answer.id, answer.reason)
        return True
    if answer.predicted_step_s is not None:
        assert 0 < answer.predicted_step_s < float("inf")
    assert answer.predicted_memory_bytes > 0
    return True


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_cells_breaks_a_table(seed):
    chance = random.Random(seed)
    rows = []
    for _ in range(60):
        row = dict(chance.choice(ROWS))
        for column in chance.sample(sorted(set(row) - {"id", "source"}), chance.randint(1, 4)):
            choices = SPELLINGS.get(column, [])
            row[column] = chance.choice(choices if chance.random() < 0.6 and choices else BROKEN)
        rows.append(row)
    document = backtest([*rows, ROW["sc21_t1_3.6B"]], FACTS)
    assert document["rows"][-1]["status"] == "predicted"
    assert all(is_sound(predict_row(row, FACTS)) for row in rows)


def test_no_prediction_is_beyond_the_peak():
    for row in ROWS:
        if row["notes"].startswith("[A]"):
            continue
        job = read_row(row, FACTS).job
        answer = predict_row(row, FACTS)
        flops = 6 * float(row["params_b"] or 1e-9) * 1e9 * answer.tokens / job.layout.world_size
        peak = job.hardware.gpu.peak_flops.fp8 or job.hardware.gpu.peak_flops.bf16
        assert flops / answer.predicted_step_s < peak, row["id"]


HEADER = ("\ufeffID, Source ,Model,Layers,hidden_size,heads,seq_len,GPU,num_gpus,TP,MBS,"
          "global_batch_size,step_time_ms,mem_gb,extra,notes")  # fmt: skip


def test_a_table_with_other_names_units_quotes_and_blank_rows_is_read():
    text = (
        f'{HEADER}\r\n\r\na,"me, 24",gpt,24,"2,048",16,2k,A100,8,1,4,64,"1,500",40,x,"one, two"\r\n'
        ",,,,,,,,,,,,,,,\r\n"
        "b,me,llama2-7b,,,,4096,H100,8,1,1,8,,,,\r\n"
    )
    rows = read_table(text, "t.csv")
    assert [row["id"] for row in rows] == ["a", "b"]
    first, second = (predict_row(row, FACTS) for row in rows)
    assert first.measured_step_s == pytest.approx(1.5)
    assert first.measured_memory_bytes == pytest.approx(40e9, rel=1e-6)
    assert second.status == "predicted"
    assert "layers=32, as llama2_7b" in second.assumed


@pytest.mark.parametrize("missing", ["heads", "vocab", "ffn", "kv_heads", "params_b",
                                     "gpus_per_node", "micro_batch", "recompute", "precision",
                                     "zero_or_fsdp", "sp", "dp", "tp", "pp", "vpp", "cp", "ep",
                                     "notes", "source", "model", "id", "step_time_s"])  # fmt: skip
def test_a_cell_that_is_not_published_is_taken_at_a_default(missing):
    for name in ("sc21_t1_39B", "tt_8b_fsdp8_compile"):
        assert predict_row(ROW[name] | {missing: ""}, FACTS).status == "predicted" or missing in (
            "tp", "pp", "cp", "dp"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "words"),
    [({"precision": "nvfp4"}, "nvfp4"), ({"gpu": "A100", "precision": "fp8"}, "no 8-bit"),
     ({"gpu": "TPU v5p"}, "TPU v5p"), ({"model": "big-moe"}, "experts"),
     ({"global_batch": "", "micro_batch": ""}, "global_batch")],
)  # fmt: skip
def test_what_has_no_facts_is_unsupported_and_says_so(cells, words):
    answer = predict_row(ROW["tt_8b_fsdp8_compile"] | cells, FACTS)
    assert answer.status == "unsupported"
    assert words in answer.reason


def test_experts_are_read_from_the_name_or_the_notes():
    row = ROW["tt_8b_fsdp8_compile"] | {"params_b": "", "step_time_s": ""}
    named = read_row(row | {"model": "my-8x3b"}, FACTS).job.model.experts
    assert (named.num_experts, named.experts_per_token, named.ffn_hidden_size) == (8, 2, 14336)
    notes = "[T] 64 experts, top-6, expert ffn 1408, 2 shared"
    said = read_row(row | {"model": "m", "notes": notes}, FACTS).job.model.experts
    assert (said.num_experts, said.experts_per_token) == (64, 6)
    assert (said.ffn_hidden_size, said.num_shared) == (1408, 2)


def test_accumulation_gives_the_microbatch():
    row = ROW["tt_8b_fsdp8_compile"] | {"micro_batch": "", "global_batch": "64"}
    layout = read_row(row | {"notes": "[T] grad accum 4"}, FACTS).job.layout
    assert (layout.micro_batch_size, layout.num_microbatches) == (2, 4)


def test_an_encoder_decoder_is_read_by_name_or_by_size():
    row = ROW["sc21_t1_3.6B"] | {"seq": "512", "kv_heads": "", "step_time_s": "1"}
    sizes = {"layers": "24", "hidden": "1024", "heads": "128", "ffn": "65536", "vocab": "32128"}
    known = read_row(row | sizes | {"model": "T5-11B", "params_b": "11.3"}, FACTS).job.model
    assert (known.num_layers, known.encoder.num_layers, known.head_dim) == (24, 24, 128)
    twice = {"layers": "48", "model": "my-t5", "params_b": "11.3", "notes": "target length 128"}
    found = read_row(row | sizes | twice, FACTS).job.model
    assert (found.num_layers, found.encoder.decoder_length, found.head_dim) == (24, 128, 128)
    assert predict_row(row | sizes | twice, FACTS).status == "predicted"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_read(delimiter):
    lines = ("id,gpu,gpus,model,seq,micro_batch,notes", "a,A100,8,llama2-7b,2048,1,x")
    (row,) = read_table("\n".join(lines).replace(",", delimiter), "t.csv")
    assert row["model"] == "llama2-7b"
    assert predict_row(row, FACTS).status == "predicted"


def test_experts_follow_from_the_parameters_of_a_mixture():
    row = ROW["tt_8b_fsdp8_compile"] | {"model": "some-moe", "params_b": "141", "layers": "56",
                                        "hidden": "6144", "heads": "48", "kv_heads": "8",
                                        "ffn": "16384", "vocab": "32768"}  # fmt: skip
    measured = read_row(row, FACTS)
    assert measured.job.model.experts.num_experts == 8
    assert "8 experts, two per token" in measured.assumed
    assert predict_row(row | {"params_b": "100"}, FACTS).status == "unsupported"
    assert read_row(row | {"model": "x"}, FACTS).job.model.experts.num_experts == 8
    dense = read_row(row | {"model": "x", "params_b": "100"}, FACTS)
    assert dense.job.model.experts is None
    assert "22.2 billion parameters by its dimensions, not 100" in dense.assumed


@pytest.mark.parametrize(
    ("gpu", "notes", "device", "per_gpu"),
    [("p4d.24xlarge", "", "A100", 50e9 / 8), ("p5.48xlarge", "", "H100", 50e9),
     ("H100", "EFA", "H100", 50e9), ("A100 80GB", "400 Gb/s EFA per node", "A100", 50e9 / 8)],
)  # fmt: skip
def test_clouds_are_read_by_their_names(gpu, notes, device, per_gpu):
    cells = {"gpu": gpu, "notes": notes, "gpus": "64", "dp": "64", "global_batch": "128"}
    cells |= {"step_time_s": "", "tokens_per_s_per_gpu": ""}  # an H100's
    hardware = read_row(ROW["tt_8b_fsdp8_compile"] | cells, FACTS).job.hardware
    assert device in hardware.gpu.name
    assert hardware.network.bandwidth == per_gpu


def test_a_program_shards_as_it_does_by_default():
    for source, stage in (("NVIDIA NeMo", 1), ("torchtitan", 3), ("somebody", 0)):
        row = ROW["tt_8b_fsdp8_compile"] | {"source": source, "zero_or_fsdp": "",
                                            "source_url_or_repo_path": "", "notes": ""}  # fmt: skip
        assert read_row(row, FACTS).job.layout.zero_stage == stage


def test_a_run_that_was_measured_had_what_makes_it_fit():
    row = ROW["tt_8b_fsdp8_compile"] | {"source": "somebody", "source_url_or_repo_path": "",
                                        "zero_or_fsdp": "", "micro_batch": "1", "notes": "[T]",
                                        "mem_gib": ""}  # fmt: skip
    answer = predict_row(row, FACTS)
    assert answer.predicted_fits
    assert "zero_or_fsdp=zero1" in answer.assumed
    failed = predict_row(row | {"notes": "[O]"}, FACTS)
    assert not failed.predicted_fits
    assert "nothing sharded over dp" in failed.assumed


def test_sharded_weights_are_gathered_for_the_largest_microbatch_that_fits():
    row = ROW["tt_8b_fsdp8_compile"] | {"micro_batch": "", "global_batch": "64", "notes": "[T]"}
    answer = predict_row(row, FACTS)
    assert answer.predicted_fits
    assert "micro_batch=2" in answer.assumed
    assert "micro_batch=1" not in answer.assumed
