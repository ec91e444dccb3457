"""The split into stages: even, complete, deterministic, counted exactly."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Model
from launcher.plan.build import build_plan
from launcher.plan.costs import (
    block_parameters,
    count_parameters,
    embedding_parameters,
    head_parameters,
    sum_sizes,
)
from launcher.plan.schedule_records import Chain
from launcher.plan.shrink import shrink_run
from launcher.plan.stages import count_stage_parameters, make_stages, split_layers, split_stages
from tests.factory import GPT2_124M, LLAMA3_70B, TINY, make_run


def costs(block=1.0, embedding=0.0, head=0.0):
    return SimpleNamespace(block_s=block, embedding_s=embedding, head_s=head)


def maximum(bounds, first, last):
    costs = [float(end - start) for start, end in bounds]
    costs[0] += first
    costs[-1] += last
    return max(costs)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.floats(0, 4), st.floats(0, 4))
def test_no_other_contiguous_split_has_a_smaller_maximum(num_layers, num_stages, first, last):
    bounds = split_layers(num_layers, num_stages, first_cost=first, last_cost=last)
    least = 1 if num_layers >= num_stages else 0
    assert [layer for start, end in bounds for layer in range(start, end)] == [*range(num_layers)]
    assert all(end - start >= least for start, end in bounds)
    for cuts in itertools.combinations_with_replacement(range(num_layers + 1), num_stages - 1):
        other = list(itertools.pairwise((0, *cuts, num_layers)))
        if all(end - start >= least for start, end in other):
            assert maximum(bounds, first, last) <= maximum(other, first, last) + 1e-9


def test_equal_stages_stay_equal():
    assert split_layers(8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_the_remainder_goes_to_later_stages():
    assert split_layers(7, 3) == [(0, 2), (2, 4), (4, 7)]


def test_a_heavy_head_takes_blocks_from_the_last_stage():
    stages = split_stages(Model.model_validate(LLAMA3_70B), 16, costs(head=1.2))
    layers = [stage.end_layer - stage.first_layer for stage in stages]
    assert layers[-1] == 4
    assert sum(layers) == 80
    assert max(layers) == 6


@pytest.mark.parametrize("pp", [1, 2, 3, 5])
def test_parameters_of_the_stages_add_up_to_the_model(pp):
    model = Model.model_validate(LLAMA3_70B)
    stages = split_stages(model, pp, costs(head=1.0))
    assert sum(stage.parameters for stage in stages) == count_parameters(model)


@pytest.mark.parametrize("pp", [2, 4])
def test_the_last_stage_of_a_tied_model_holds_a_copy_of_the_token_table(pp):
    model = Model.model_validate(GPT2_124M)
    stages = split_stages(model, pp, costs())
    copy = 50257 * 768
    assert sum(stage.parameters for stage in stages) == count_parameters(model) + copy
    assert stages[-1].parameters > copy


def test_a_single_stage_has_no_copy_of_a_tied_table():
    model = Model.model_validate(GPT2_124M)
    assert split_stages(model, 1, costs())[0].parameters == 124_439_808


def test_more_stages_than_layers_leave_some_empty():
    bounds = split_layers(2, 4)
    assert sorted(end - start for start, end in bounds) == [0, 0, 1, 1]


def test_parameters_of_a_rank_hold_its_share_of_matrices_and_all_norms():
    model = Model.model_validate(LLAMA3_70B)
    whole = count_stage_parameters(model, 10, False, False)
    share = count_stage_parameters(model, 10, False, False, tp=8)
    norms = 10 * 2 * 8192
    assert share == (whole - norms) // 8 + norms


def test_a_split_by_hand_is_taken_as_it_is() -> None:
    made = build_plan(make_run(parallelism={"pp": 2, "layers_per_stage": [1, 3]}))
    assert [(s.first_layer, s.end_layer) for s in made.stages] == [(0, 1), (1, 4)]
    chunked = {"pp": 2, "vpp": 2, "schedule": "zb_v", "layers_per_stage": [2, 1, 1, 3]}
    made = build_plan(make_run(model=TINY | {"num_layers": 7}, parallelism=chunked))
    assert [s.chunks for s in made.stages] == [((0, 2), (4, 7)), ((2, 3), (3, 4))]


def test_a_split_by_hand_stays_uneven_when_it_is_made_small() -> None:
    degrees = {"pp": 2, "layers_per_stage": [14, 16]}
    made = build_plan(make_run(model=TINY | {"num_layers": 30}, parallelism=degrees))
    small = build_plan(shrink_run(made.run, made.layout))
    assert [stage.num_layers for stage in small.stages] == [1, 2]
    assert small.run.model.num_layers == 3


@pytest.mark.parametrize(("pp", "vpp"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2)])
def test_dense_blocks_of_a_mixture_are_counted_where_they_are(pp, vpp):
    """With few blocks per part, more than the first one has some of the three."""
    experts = {"num_experts": 8, "experts_per_token": 2, "ffn_hidden_size": 64,
               "num_dense_layers": 3}  # fmt: skip
    model = make_run(model=TINY | {"num_layers": 8, "experts": experts}).model
    chain = Chain(num_stages=pp, num_chunks=vpp, placement="loop")
    each = 8 // (pp * vpp)
    bounds = [(part * each, (part + 1) * each) for part in range(pp * vpp)]
    stages = make_stages(model, chain, bounds)
    ends = embedding_parameters(model) + head_parameters(model)
    assert sum(stage.parameters for stage in stages) == count_parameters(model)
    for stage in stages:
        blocks = [layer for piece in stage.pieces
                  for layer in range(piece.first_layer, piece.end_layer)]  # fmt: skip
        wanted = sum(sum_sizes(block_parameters(model, layer)) for layer in blocks)
        wanted += sum_sizes(ends[:1]) * stage.is_first + sum_sizes(ends[1:]) * stage.is_last
        assert stage.parameters == wanted
