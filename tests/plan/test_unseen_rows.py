"""Corners that no measured row of ours has: what must hold of a prediction whatever the numbers."""

from dataclasses import replace

import pytest

from launcher.plan.activations import block_kept_bytes
from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import read_row
from launcher.plan.backtest_words import zero_stage
from launcher.plan.kernels import Gemm, gemm_s
from launcher.plan.operators import block_work
from launcher.plan.stage_time import estimate_parts

from .test_backtest import FACTS, ROW


def make_row(name, **cells):
    """A row with nothing measured."""
    blank = dict.fromkeys(("step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "mfu",
                           "mem_gib", "notes"), "")  # fmt: skip
    return (
        ROW[name]
        | blank
        | {"dp": "", "gpus_per_node": ""}
        | {key: str(value) for key, value in cells.items()}
    )


def mixture(**cells):
    """Mixtral 8x7B on 64 H100."""
    dimensions = {"model": "mixtral-8x7b", "params_b": 46.7, "layers": 32, "hidden": 4096,
                  "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 32000}  # fmt: skip
    silent = dict.fromkeys(("tp", "pp", "vpp", "cp", "dp", "zero_or_fsdp", "recompute"), "")
    return make_row("sc21_t1_3.6B", **dimensions | silent | {
        "source": "Megatron-Core", "gpu": "H100", "gpus": 64, "micro_batch": 1, "global_batch": 128,
        "seq": 4096, "precision": "bf16",
    } | cells)  # fmt: skip


def grouped_flops(**cells):
    """Of the experts' products in one block, on one rank."""
    work = block_work(read_row(mixture(**cells), FACTS).job)
    return sum(product.forward.flops for product in work.grouped)


@pytest.mark.parametrize("ep", [1, 2, 8])
def test_tp_ranks_share_the_experts_work_whether_experts_are_cut_or_whole(ep):
    assert grouped_flops(tp=4, ep=ep) == pytest.approx(grouped_flops(tp=1, ep=ep) / 4)


def test_tp_ranks_send_a_share_of_the_tokens_to_experts_each():
    one, four = (block_work(read_row(mixture(tp=tp, ep=8), FACTS).job) for tp in (1, 4))
    assert one.all_to_all_bytes == 4 * four.all_to_all_bytes
    kept = [block_kept_bytes(read_row(mixture(tp=tp, ep=8), FACTS).job, "none") for tp in (1, 4)]
    assert kept[1] < 0.4 * kept[0]


def test_experts_keep_the_routed_copies_of_tokens_in_the_8_bits_that_they_multiply_in():
    # 4,096 tokens, each at 2 of 8 experts of Mixtral, and by hand what Transformer Engine saves.
    kept = [block_kept_bytes(read_row(mixture(precision=precision, ep=8), FACTS).job, "none")
            for precision in ("bf16", "fp8")]  # fmt: skip
    attention = 4096 * 4096  # behind the norm; what the core computed takes as much again
    routed = 2 * 4096 * (4096 + 14336)
    assert kept[0] - kept[1] == attention + routed - 4096 * 4096


def test_a_mixture_under_tp_is_no_order_of_magnitude_slower():
    one, four = (predict_row(mixture(tp=tp, ep=8), FACTS) for tp in (1, 4))
    assert four.predicted_step_s < 1.6 * one.predicted_step_s


PROFILES = {
    (22, 2304, 24, 8, 6): (18.522, 18.086, 9.337),
    (46, 5120, 40, 16, 1): (11.347, 11.248, 8.132),
}
"""Zero bubble (2401.10241, table 9): layers, width, heads, stages, samples; ms of F, B and W."""


@pytest.mark.parametrize("shape", PROFILES)
def test_the_zero_bubble_papers_passes_are_those_of_written_scores(shape):
    layers, hidden, heads, stages, samples = shape
    row = make_row(
        "sc21_t1_3.6B", source="Zero bubble (2401.10241)", model="gpt", params_b="", vocab=50257,
        layers=layers, hidden=hidden, heads=heads, kv_heads=heads, ffn=4 * hidden, seq=1024,
        gpus=stages, pp=stages, tp=1, micro_batch=samples, global_batch=24 * samples,
        recompute="none",
    )  # fmt: skip
    job = read_row(row, FACTS).job
    each = (layers + 2) / stages  # embedding and head are a block each

    def pass_ms(attention):
        changed = replace(job, execution=replace(job.execution, attention=attention))
        return 1e3 * each * estimate_parts(changed).block.total_s

    assert job.execution.attention == "matrix"
    assert pass_ms("matrix") == pytest.approx(sum(PROFILES[shape]), rel=0.08)
    assert pass_ms("flash") < 0.93 * pass_ms("matrix")


@pytest.mark.parametrize("cells", [{"cp": "8"}, {"seq": "131072"}])
def test_nobody_writes_the_scores_of_a_long_sequence_out(cells):
    row = make_row("sc21_t1_3.6B", source="Megatron-DeepSpeed", **{"tp": 1, "gpus": 8} | cells)
    assert read_row(row, FACTS).job.execution.attention == "flash"
    short = make_row("sc21_t1_3.6B", source="Megatron-DeepSpeed")
    assert read_row(short, FACTS).job.execution.attention == "matrix"


@pytest.mark.parametrize(
    ("cell", "notes", "size"),
    [("MiCS", "partition group size 16", 16), ("MiCS (8-GPU groups)", "", 8), ("mics", "", 8),
     ("hsdp", "shard=32", 32), ("zero3", "baseline of MiCS, partition size 16", None)],
)  # fmt: skip
def test_mics_is_zero_3_in_partition_groups(cell, notes, size):
    row = make_row("sc21_t1_3.6B", source="x", zero_or_fsdp=cell, pp=1, notes=notes)
    assert zero_stage(cell.lower(), 1) == 3
    assert read_row(row, FACTS).job.execution.shard_size == size


@pytest.mark.parametrize("notes", ["", "no comm overlap"])
def test_zero_3_gathers_ahead_whatever_the_program(notes):
    row = make_row("sc21_t1_3.6B", source="2104.04473", zero_or_fsdp="zero3", pp=1, notes=notes)
    assert read_row(row, FACTS).job.execution.overlap_dp is (notes == "")


def test_zero_plus_plus_is_zero_3_with_8_bit_messages():
    job = read_row(make_row("sc21_t1_3.6B", source="x", zero_or_fsdp="ZeRO++", pp=1), FACTS).job
    execution = job.execution
    assert (job.layout.zero_stage, execution.gather_bytes, execution.reduce_bytes) == (3, 1, 1)


@pytest.mark.parametrize(("url", "kernel"), [("2205.01068", "matrix"), ("2304.11277", "flash")])
def test_fsdp_before_flash_attention_writes_scores_out(url, kernel):
    row = make_row("sc21_t1_3.6B", source=f"A lab ({url})", source_url_or_repo_path="", pp=1,
                   zero_or_fsdp="fsdp")  # fmt: skip
    job = read_row(row, FACTS).job
    assert job.execution.attention == kernel
    assert job.execution.dropout_masks is (kernel == "matrix")


def test_products_of_few_tokens_stand_to_others_as_in_the_zero_bubble_papers_profile():
    gpu = FACTS.gpus["a100_80gb"]

    def ms(tokens, hidden):
        """Three blocks' weight gradients, added to float32 sums."""
        widths = (
            (3 * hidden, hidden),
            (hidden, hidden),
            (4 * hidden, hidden),
            (hidden, 4 * hidden),
        )
        products = [Gemm(m=k, n=n, k=tokens, output_bytes=8) for n, k in widths]
        return 3e3 * sum(gemm_s(product, "bf16", gpu) for product in products)

    assert ms(6144, 2304) == pytest.approx(9.337, rel=0.1)
    assert ms(1024, 5120) / ms(6144, 2304) == pytest.approx(8.132 / 9.337, rel=0.04)


def test_sums_of_gradients_by_kernels_of_their_own_cost_a_pass_over_memory():
    job = read_row(make_row("sc21_t1_3.6B"), FACTS).job
    assert not job.execution.fuses_gradients  # Megatron-LM of 2021
    fused = replace(job, execution=replace(job.execution, fuses_gradients=True))
    apart_s, fused_s = (estimate_parts(one).block.weight_s for one in (job, fused))
    elements = 12 * 3072**2 / job.layout.tp
    least_s = 10 * elements / job.hardware.gpu.memory_bandwidth  # two bytes read, four both ways
    assert least_s < apart_s - fused_s < 2 * least_s


@pytest.mark.parametrize(
    ("source", "fuses"),
    [("Narayanan (2104.04473)", False), ("Korthikanti 2205.05198", True), ("Megatron-LM", True),
     ("DeepSpeed", False), ("InternEvo", False), ("Zero bubble 2401.10241", True)],
)  # fmt: skip
def test_a_programs_sums_of_gradients_are_known_by_its_name(source, fuses):
    row = make_row("sc21_t1_3.6B", source=source, source_url_or_repo_path="")
    assert read_row(row, FACTS).job.execution.fuses_gradients is fuses


@pytest.mark.parametrize(
    ("gpu", "gigabits"),
    [("V100-32GB", 12.5), ("p3dn.24xlarge", 12.5), ("A100-40GB", 50), ("H100", 400)],
)
def test_elastic_fabric_adapters_are_those_of_the_devices_instances(gpu, gigabits):
    row = make_row("sc21_t1_3.6B", gpu=gpu, notes="EFA")
    assert read_row(row, FACTS).job.hardware.network.bandwidth == gigabits * 1e9 / 8


def tokens_per_s(**cells):
    """Of a 7B model; per GPU."""
    row = make_row(
        "sc21_t1_3.6B", **{
            "source": "Megatron-LM", "model": "llama2-7b", "params_b": 6.74, "layers": 32,
            "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000,
            "seq": 4096, "gpus": 64, "tp": 2, "pp": 1, "micro_batch": 1, "global_batch": 512,
            "recompute": "full",
        } | cells,
    )  # fmt: skip
    answer = predict_row(row, FACTS)
    return answer.tokens / answer.predicted_step_s / int(row["gpus"])


@pytest.mark.parametrize("gpu", ["V100-32GB", "A100-80GB", "H100", "B200", "MI300X"])
def test_larger_microbatches_are_faster_and_wider_cuts_and_clusters_slower(gpu):
    batches = [tokens_per_s(gpu=gpu, micro_batch=size) for size in (1, 2, 4)]
    cuts = [tokens_per_s(gpu=gpu, tp=tp) for tp in (1, 2, 4, 8)]
    stages = [tokens_per_s(gpu=gpu, pp=pp) for pp in (1, 2, 4)]
    clusters = [tokens_per_s(gpu=gpu, gpus=n, global_batch=4 * n) for n in (8, 64, 512)]
    lengths = [tokens_per_s(gpu=gpu, seq=s, global_batch=2**21 // s) for s in (4096, 8192, 16384)]
    assert batches == sorted(batches)
    for falling in (cuts, stages, clusters, lengths):
        assert falling == sorted(falling, reverse=True)
