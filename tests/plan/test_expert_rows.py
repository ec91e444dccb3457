"""Rows of mixtures of experts: what is exchanged with experts, and where their ranks lie."""

from dataclasses import replace

import pytest

from launcher.plan.backtest import predict_job, predict_row
from launcher.plan.backtest_rows import read_row
from launcher.plan.collectives import exchanged_bytes
from launcher.plan.operators import block_work
from launcher.plan.step_time import find_links

from .test_backtest import FACTS
from .test_unseen_rows import mixture


@pytest.mark.parametrize(
    ("notes", "overlaps"),
    [("DualPipe", True), ("EP comm overlap", True), ("overlapped all-to-all", True),
     ("--overlap-moe-expert-parallel-comm", True), ("a2a overlap", True), ("", False),
     ("tp comm overlap", False), ("no ep overlap", False), ("DualPipe, no comm overlap", False)],
)  # fmt: skip
def test_exchanges_with_experts_run_beside_computing_where_the_row_says_so(notes, overlaps):
    job = read_row(mixture(ep=8, pp=8, gpus_per_node=1, notes=notes), FACTS).job
    assert job.execution.overlap_ep is overlaps
    without = replace(job, execution=replace(job.execution, overlap_ep=False))
    waits_s = [predict_job(one)[1].time.exposed_communication_s for one in (job, without)]
    assert (waits_s[0] < 0.8 * waits_s[1]) is overlaps


@pytest.mark.parametrize(
    ("notes", "copies"),
    # Eight nodes and eight experts per token: of copies of a token, as many as nodes are reached.
    [("DeepEP", 8 * (1 - (7 / 8) ** 8)), ("flex dispatcher, at most 4 nodes", 4 * (1 - 0.75**8)),
     ("all-to-all dispatcher", 8), ("deepepoch", 8)],
)  # fmt: skip
def test_a_token_is_sent_to_each_node_once_where_the_row_says_so(notes, copies):
    row = mixture(ep=64, pp=1, gpus=64, tp=1, dp=64, gpus_per_node=8, notes=EIGHT_OF_64 + notes)
    job = read_row(row, FACTS).job
    work, links = block_work(job), find_links(job)
    assert links.ep.num_nodes == 8
    sent = exchanged_bytes(work, job, links.ep)
    assert sent / work.all_to_all_bytes == pytest.approx(copies / 8)
    inside = links.ep._replace(crosses_nodes=False, num_nodes=1)
    assert exchanged_bytes(work, job, inside) == work.all_to_all_bytes


EIGHT_OF_64 = "64 experts, top-8; "


def test_a_size_that_no_experts_of_the_row_make_is_named():
    notes = "64 experts, top-1"
    row = mixture(model="a-moe", params_b=7, notes=notes)
    assert "362 billion parameters by its dimensions, not 7" in predict_row(row, FACTS).assumed
    assert not any("billion" in part for part in predict_row(mixture(), FACTS).assumed)


@pytest.mark.parametrize(
    ("notes", "every"),
    [("64 experts, top-1, in every other layer", 2), ("16 experts, moe-layer-freq 4", 4),
     ("MoE in alternate blocks, 8 experts", 2), ("128 experts, top-1", 1),
     ("64 experts, sliding window in every other layer", 1),
     ("8 experts; recompute every other layer", 1)],
)  # fmt: skip
def test_notes_say_which_blocks_have_experts(notes, every):
    model = read_row(mixture(model="a-moe", notes=notes), FACTS).job.model
    assert model.experts.every == every
    assert model.num_plain == model.num_layers - model.num_layers // every


def test_tokens_of_all_devices_together_are_no_rate_of_one_in_a_mixture_either():
    answer = predict_row(mixture(tokens_per_s_per_gpu=640_000), FACTS)
    assert (answer.status, "beyond the peak" in answer.reason) == ("bad", True)
    assert predict_row(mixture(tokens_per_s_per_gpu=10_000), FACTS).status == "predicted"


@pytest.mark.parametrize(
    ("notes", "said"),
    [("ETP=2", "etp=2"), ("expert-tensor-parallel-size 4", "expert-tensor-parallel-size 4"),
     ("etp1", None), ("", None)],
)  # fmt: skip
def test_experts_that_ranks_share_are_said_to_be_taken_whole(notes, said):
    found = read_row(mixture(tp=2, ep=4, notes=notes), FACTS).assumed
    assert [words for words in found if "whole" in words] == (
        [f"experts are whole on each rank, for all that {said} says"] if said else []
    )


@pytest.mark.parametrize(("tp", "ep", "crosses"), [(1, 8, False), (2, 8, False), (4, 8, False),
                                                   (2, 4, False), (2, 16, True)])  # fmt: skip
def test_ranks_of_tp_that_hold_different_experts_are_those_of_ep_first(tp, ep, crosses):
    row = mixture(model="a-moe", params_b="", notes="64 experts, top-8", tp=tp, ep=ep)
    links = find_links(read_row(row, FACTS).job)
    assert (links.ep.crosses_nodes, links.ep.group_size) == (crosses, ep)


def test_ranks_of_ep_lie_on_several_nodes_where_a_pipeline_lies_between():
    job = read_row(mixture(tp=2, pp=4, ep=8), FACTS).job
    far = replace(job, layout=replace(job.layout, order=("tp", "pp", "cp", "dp")))
    assert not find_links(job).ep.crosses_nodes
    assert find_links(far).ep.num_nodes == 4  # two ranks of tp on each
