"""Devices by their memory, figures that no device reaches, sweeps and programs that rows name."""

import pytest

from launcher.plan.backtest import backtest, predict_row
from launcher.plan.backtest_rows import read_row

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    ("gpu", "facts", "share"),
    [("DGX-A100-640GB", "A100-SXM4-80GB", 1), ("A100-SXM4-80GB (400 GPUs)", "A100-SXM4-80GB", 1),
     ("DGX A100 320GB", "A100-SXM4-40GB", 1), ("A100 40GB", "A100-SXM4-40GB", 1),
     ("A100-64GB", "A100-SXM4-80GB", 64 / 80), ("H20-141GB", "H20-96GB", 141 / 96),
     ("B200 192GB", "B200-SXM-180GB", 1), ("GH200 480GB", "GH200-96GB", 1),
     ("MI250X 128GB", "MI250X-GCD-64GB", 1)],
)  # fmt: skip
def test_a_device_has_the_memory_that_its_label_says(gpu, facts, share):
    found = read_row(llama(gpu=gpu), FACTS)
    usual = next(each for each in FACTS.gpus.values() if each.name == facts)
    assert found.job.hardware.gpu.name == facts
    assert found.job.hardware.gpu.memory_bytes == round(share * usual.memory_bytes)
    said = f"gpu={gpu}: as {facts} but for its memory"
    assert (said in found.assumed) is (share != 1)


@pytest.mark.parametrize(
    "cells", [{"tokens_per_s_per_gpu": "640,000"}, {"tflops_per_gpu": "2500"},
              {"step_time_s": "0.001"}],
)  # fmt: skip
def test_a_figure_beyond_the_peak_of_a_device_is_broken(cells):
    answer = predict_row(llama(**cells), FACTS)
    ((column, cell),) = cells.items()
    assert (answer.status, answer.reason) == (
        "bad", f"{column}={cell}: beyond the peak of a device",
    )  # fmt: skip


def test_a_figure_at_the_peak_is_taken_as_it_is():
    assert predict_row(llama(tflops_per_gpu=989), FACTS).status == "predicted"


def test_one_sweep_may_be_written_in_several_ways():
    ways = ({"tp": 1}, {"tp": 2, "model": "Llama2-7B"}, {"tp": 4, "precision": "BF16"},
            {"tp": 8, "seq": "4k", "gpus": "8x8"})  # fmt: skip
    rows = [llama(id=str(at), step_time_s=2 + at, **way) for at, way in enumerate(ways)]
    (sweep,) = backtest(rows, FACTS)["overall"]["sweeps"]
    assert sweep["rows"] == 4


def test_models_of_one_name_and_another_size_are_no_sweep():
    rows = [llama(id=str(at), step_time_s=2 + at, tp=2**at) for at in range(3)]
    rows += [llama(id=str(at), step_time_s=2 + at, tp=2 ** (at - 3), layers=30) for at in (3, 4, 5)]
    first, second = backtest(rows, FACTS)["overall"]["sweeps"]
    assert (first["rows"], second["rows"]) == (3, 3)


@pytest.mark.parametrize(
    ("source", "recompute", "kind"),
    [("torchtitan", "selective", "operators"), ("torchtitan", "sel-AC", "operators"),
     ("torchtitan", "selective (attention)", "selective"),
     ("Megatron-LM", "selective", "selective")],
)  # fmt: skip
def test_torchtitan_selects_operators(source, recompute, kind):
    assert job(source=source, recompute=recompute).execution.recompute == kind


def test_chains_of_broadcasts_are_internevos_zero_1_and_not_its_zero_3():
    steps = [predict_row(llama(source="InternEvo", zero_or_fsdp="zero3", recompute="none",
                               gpus=gpus, global_batch=4 * gpus), FACTS).predicted_step_s
             for gpus in (64, 1024)]  # fmt: skip
    assert steps[1] < 1.3 * steps[0]


@pytest.mark.parametrize(
    ("source", "kind"),
    [("somebody", "Megatron-Core's, with FlashAttention 2"), ("DeepSpeed", None), ("FSDP", None),
     ("a paper (2104.01234)", "Megatron-LM's of 2021")],
)  # fmt: skip
def test_a_program_that_nobody_names_is_said_to_be_taken_for_one(source, kind):
    said = [word for word in read_row(llama(source=source), FACTS).assumed if "program" in word]
    assert said == ([f"no program that is known: kernels and overlap as {kind}"] if kind else [])


@pytest.mark.parametrize(
    ("source", "attention"),
    [("MT-NLG, by a paper (2312.12345)", "matrix"), ("Narayanan in 2305.12345", "matrix"),
     ("Megatron-DeepSpeed (2309.14509)", "flash"), ("GPT-NeoX (2401.00001)", "flash")],
)  # fmt: skip
def test_a_later_paper_does_not_change_the_run_that_it_cites(source, attention):
    assert job(source=source, gpu="A100").execution.attention == attention


@pytest.mark.parametrize("source", ["nanotron", "Hugging Face nanotron", "Ultra-Scale Playbook"])
def test_nanotron_is_one_program_by_all_its_names(source):
    found = job(source=source).execution
    assert (found.attention, found.fusion, found.fused_norm) == ("flash", "eager", True)
    assert (found.gradient_bytes, found.reduce_bytes, found.fuses_gradients) == (4, 4, False)


@pytest.mark.parametrize(
    ("cells", "dies"),
    [({"gpu": "MI250-128GB", "gpus": 4}, 8), ({"gpu": "MI250", "gpus": 8, "gpus_per_node": 4}, 16),
     ({"gpu": "MI250X (2 GCDs)", "gpus": 4}, 8), ({"gpu": "MI250X-GCD", "gpus": 8}, 8),
     ({"gpu": "MI250X 128GB", "gpus": 8, "gpus_per_node": 8}, 8), ({"gpu": "MI250X", "gpus": 8}, 8),
     ({"gpu": "MI250X (GCD)", "gpus": 4, "gpus_per_node": 4}, 4)],
)  # fmt: skip
def test_a_module_of_two_dies_is_two_devices_of_half_its_rate(cells, dies):
    found = read_row(llama(**cells, tflops_per_gpu=120, zero_or_fsdp="fsdp"), FACTS)
    assert (found.job.layout.world_size, found.job.layout.dp) == (dies, dies)
    assert any("two dies" in words for words in found.assumed) is (dies != cells["gpus"])
    whole = read_row(llama(gpu="MI250X-GCD", gpus=cells["gpus"], tflops_per_gpu=120), FACTS)
    assert found.step_s == pytest.approx(whole.step_s)


def test_rates_that_are_said_to_be_of_a_die_are_not_halved():
    rows = [read_row(llama(gpu="MI250", gpus=16, gpus_per_node=4, dp=16, tflops_per_gpu=60,
                           notes=notes), FACTS) for notes in ("", "TFLOP/s per GCD")]  # fmt: skip
    assert rows[0].step_s == pytest.approx(2 * rows[1].step_s)
    assert rows[0].job.layout.dp == 32
