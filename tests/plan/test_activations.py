"""Activations against published formulas."""

from dataclasses import replace

import pytest

from launcher.config.schema import Hardware, Model
from launcher.plan.activations import block_kept_bytes, head_kept_bytes
from launcher.plan.execution import Execution, Job
from launcher.plan.records import Layout
from launcher.plan.temporaries import logit_temporary_bytes
from tests.factory import GPT2_124M, h100

GPT3 = Model.model_validate(GPT2_124M | {
    "num_layers": 96, "hidden_size": 12288, "num_heads": 96, "ffn_hidden_size": 49152,
    "vocab_size": 51200, "max_sequence_length": 2048, "dropout": 0.1, "tie_embeddings": True,
})  # fmt: skip


def job(tp=1, batch=1, length=2048, **execution):
    layout = Layout(
        world_size=tp, nodes=1, gpus_per_node=8, tp=tp, cp=1, ep=1, pp=1, vpp=1, dp=1,
        zero_stage=1, micro_batch_size=batch, num_microbatches=1, global_batch_size=batch,
        sequence_length=length, schedule="1f1b", recompute="none",
        order=("tp", "cp", "dp", "pp"),
    )  # fmt: skip
    facts = {"dropout_masks": True, "logit_copies": 1} | execution
    return Job(
        model=GPT3, hardware=Hardware.model_validate(h100(1)), layout=layout,
        execution=Execution(**facts),
    )  # fmt: skip


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("b", [1, 4])
def test_gpt_activations_are_table_2_of_the_selective_recomputation_paper(tp, b):
    # s b h (10 + 24 / t) with the S x S part gone, arXiv:2205.05198, plus one float per query.
    on_paper = 2048 * b * 12288 * (10 + 24 // tp)
    log_sum_exp = 2048 * b * 96 // tp * 4
    assert block_kept_bytes(job(tp, b), "none") == on_paper + log_sum_exp


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_written_scores_and_sequence_parallelism_are_the_other_lines_of_that_table(tp):
    on_paper = 2048 * 12288 * (10 + 24 // tp) + 5 * 96 * 2048 * 2048 // tp
    assert block_kept_bytes(job(tp, attention="matrix"), "none") == on_paper
    split = job(tp, attention="matrix", sequence_parallel=True)
    assert block_kept_bytes(split, "selective") == 2048 * 12288 * 34 // tp


def test_full_recomputation_keeps_the_input_of_the_block_only():
    assert block_kept_bytes(job(8, 2), "full") == 2 * 2048 * 12288 * 2


def test_recomputing_more_keeps_less():
    modes = ("none", "selective", "operators", "full")
    kept = [block_kept_bytes(job(2, 2), mode) for mode in modes]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


@pytest.mark.parametrize("element_bytes", [2, 4])
def test_logits_are_kept_once_and_cut_by_tp(element_bytes):
    one, two = (head_kept_bytes(job(tp, length=128, element_bytes=element_bytes)) for tp in (1, 2))
    assert one - two == 128 * 25600 * element_bytes


def test_the_float32_copy_of_the_logits_exists_only_where_they_are_narrower():
    narrow = job(length=128)
    assert logit_temporary_bytes(job(length=128, element_bytes=4)) == 0
    assert logit_temporary_bytes(narrow) == 128 * 51200 * 4
    fused = replace(narrow, execution=replace(narrow.execution, fused_loss=True))
    assert logit_temporary_bytes(fused) == 0
