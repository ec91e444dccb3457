"""FSDP2 in the plan: what a rank keeps, what is gathered when, and what runs beside computing."""

import pytest

from launcher.plan.build import build_plan
from launcher.plan.stages import count_stage_parameters
from tests.factory import TINY_GPT, h100, make_run
from tests.plan.cases import LLAMA3_8B

BF16 = {"name": "bf16", "compute": "bf16"}
DP = 8


def plan(zero_stage, engine="fsdp2", count=4, model=LLAMA3_8B, **overrides):
    degrees = {"tp": 1, "pp": 1, "dp": DP, "zero_stage": zero_stage, "engine": engine}
    degrees |= overrides.pop("parallelism", {})
    run = make_run(
        model=model, hardware=h100(1), parallelism=degrees, precision=BF16,
        **{"train.num_microbatches": count, **overrides},
    )  # fmt: skip
    return build_plan(run)


def dp_entries(found):
    return {entry.op: entry.bytes_per_step for entry in found.communication if entry.axis == "dp"}


@pytest.mark.parametrize(
    ("zero_stage", "count", "weights", "gradients", "optimizer"),
    [
        (1, 4, 2, 4, 12 / DP),
        (1, 1, 2, 4 / DP, 12 / DP),  # nothing to add up: reduced as they come
        (2, 4, 2, 4 / DP, 12 / DP),
        (3, 4, 4 / DP, 4 / DP, 8 / DP),  # the float32 rows are the only weights
    ],
)
def test_bytes_per_parameter_follow_the_stage(zero_stage, count, weights, gradients, optimizer):
    found = plan(zero_stage, count=count)
    (memory,) = found.memory.per_stage
    size = found.parameters
    assert memory.parameters_bytes == pytest.approx(weights * size)
    assert memory.gradients_bytes == pytest.approx(gradients * size)
    assert memory.optimizer_bytes == pytest.approx(optimizer * size)


def test_stage_3_gathers_blocks_twice_per_microbatch_and_the_ends_once():
    found = plan(3)
    model = found.run.model
    blocks = count_stage_parameters(model, model.num_layers, False, False)
    ends = found.parameters - blocks
    sent = dp_entries(found)
    share = (DP - 1) / DP  # a ring's
    assert sent["all_gather"] == pytest.approx(share * 2 * 4 * (2 * blocks + ends))
    assert sent["reduce_scatter"] == pytest.approx(share * 4 * 4 * found.parameters)


def test_hsdp_shards_inside_a_group_and_sums_between_groups():
    def plan(**parallelism):
        degrees = {"tp": 1, "pp": 1, "dp": 16, "engine": "fsdp2", "zero_stage": 3}
        return build_plan(make_run(hardware=h100(2), parallelism=degrees | parallelism))

    whole, hybrid = plan(), plan(shard_size=8)
    kept, shared = (found.memory.per_stage[0] for found in (whole, hybrid))
    assert shared.parameters_bytes == pytest.approx(2 * kept.parameters_bytes, rel=0.01)
    assert shared.optimizer_bytes == pytest.approx(2 * kept.optimizer_bytes, rel=0.01)
    entries = [(each.op, each.group_size, each.crosses_nodes) for each in hybrid.communication]
    assert entries == [("reduce_scatter", 8, False), ("all_reduce", 2, True),
                       ("all_gather", 8, False)]  # fmt: skip
    assert {each.group_size for each in whole.communication} == {16}


def test_lower_stages_gather_once_per_step_and_1_reduces_once():
    one, two = dp_entries(plan(1)), dp_entries(plan(2))
    assert one["all_gather"] == two["all_gather"]
    assert two["reduce_scatter"] == 4 * one["reduce_scatter"]


def test_parameters_are_sharded_inside_a_pipeline():
    found = plan(3, parallelism={"pp": 2, "dp": 4})
    for memory, stage in zip(found.memory.per_stage, found.stages, strict=True):
        assert memory.parameters_bytes == pytest.approx(4 * stage.parameters / 4)


def test_a_tied_table_on_two_stages_is_summed_row_by_row():
    def embedding_bytes(engine):
        found = plan(1, engine, model=TINY_GPT, parallelism={"pp": 2, "dp": 4})
        (entry,) = [entry for entry in found.communication if entry.axis == "embedding"]
        return entry.bytes_per_step

    assert embedding_bytes("deepspeed") == 4 * embedding_bytes("fsdp2")


def test_reduction_beside_the_last_backward_is_waited_for_less_than_one_behind_it():
    exposed = {
        engine: plan(1, engine, **{"train.sequence_length": 4096}).time.exposed_communication_s
        for engine in ("fsdp2", "deepspeed")
    }
    assert exposed["fsdp2"] < 0.5 * exposed["deepspeed"]


def test_largest_groups_in_flight_are_among_the_buffers():
    few, many = (
        plan(3, model=LLAMA3_8B | {"vocab_size": rows}).memory.per_stage[0].buffers_bytes
        for rows in (32_000, 128_256)
    )
    hidden = LLAMA3_8B["hidden_size"]
    # The head: gathered, its gradient, the float32 copy and this rank's rows of it.
    assert many - few >= (2 + 2 + 4 + 4 / DP) * (128_256 - 32_000) * hidden
