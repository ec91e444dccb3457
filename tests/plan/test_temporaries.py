"""Memory beside activations: what measured programs keep that no formula of activations counts."""

from dataclasses import replace

import pytest

from launcher.plan.backtest import predict_job
from launcher.plan.memory_pipeline import gradients_of_one_chunk, transfer_bytes
from launcher.plan.temporaries import (
    block_leftover_bytes,
    context_bytes,
    head_backward_bytes,
    unused_gradients_bytes,
)
from tests.plan.test_activations import job
from tests.plan.test_backtest import FACTS, ROW, read_row


def measured(name, **cells):
    return read_row(ROW[name] | cells, FACTS)


def test_transformer_engine_keeps_one_unwritten_gradient_per_weight_of_a_block():
    # Llama 3.1 405B over tp=4, two bytes each: 16384 x (16384 x 2 + 2048 x 2 + 3 x 53248) / 4.
    found = unused_gradients_bytes(measured("simumax_b200_llama3_405b_l4_tp4_pp1_dp2_mbc8").job)
    norms = 2 * 16384
    assert found == 2 * (16384 * (2 * 16384 + 2 * 2048 + 3 * 53248) // 4 + norms)
    assert unused_gradients_bytes(job()) == 0


def test_the_heads_gradients_are_those_of_its_input_and_of_its_weight():
    assert head_backward_bytes(job(length=128)) == (128 + 51200) * 12288 * 2
    split = job(tp=2, length=128, sequence_parallel=True)
    assert head_backward_bytes(split) == (2 * 128 + 25600) * 12288 * 2


def test_keys_that_are_copied_for_every_head_make_what_cp_gathers_larger():
    plain = measured("tt_8b_cp8").job
    once = replace(plain, execution=replace(plain.execution, repeats_keys=False))
    assert context_bytes(plain) == 8 * 2 * 4096 * 32768 * 2
    assert context_bytes(plain) == 4 * context_bytes(once)


def test_symmetric_memory_is_not_the_allocators():
    overlapped = measured("tt_70b_2d_asynctp").job
    plain = replace(overlapped, execution=replace(overlapped.execution, overlap_tp=False))
    whole, part = 131072 * 8192 * 2, 131072 * 8192 * 2 // 8
    assert block_leftover_bytes(plain) - block_leftover_bytes(overlapped) == 2 * (whole - part)


@pytest.mark.parametrize(("vpp", "count", "one"), [(1, 8, False), (2, 8, True), (2, 16, False)])
def test_chunks_of_a_single_round_never_hold_gradients_together(vpp, count, one):
    layout = measured("tt_405b_4d_cp4").job.layout
    assert gradients_of_one_chunk(replace(layout, vpp=vpp, num_microbatches=count)) is one


def test_torchs_pipeline_has_a_buffer_for_every_microbatch():

    found = measured("tt_405b_4d_cp4").job
    stages, _ = predict_job(found)
    each = 32768 // 8 * 16384 * 2
    # In the middle: 8 inputs, of which 3 are alive as activations, 8 gradients and 8 outputs.
    assert transfer_bytes(found, stages[3], 3) == (8 - 3 + 8 + 8) * each
    own = replace(found, execution=replace(found.execution, torch_pipeline=False))
    assert transfer_bytes(own, stages[3], 3) == 4 * each
