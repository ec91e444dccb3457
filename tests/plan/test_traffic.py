"""The table of what travels: by hand, and the same seconds as the step waits for."""

import pytest

from launcher.plan.build import build_plan
from tests.factory import GPT2_124M, LLAMA3_70B, TINY, h100, make_run
from tests.plan.cases import LLAMA3_8B

BF16 = {"name": "bf16", "compute": "bf16"}
EXPERTS = {"num_experts": 16, "experts_per_token": 2, "ffn_hidden_size": 256}
MOE = TINY | {
    "name": "moe", "num_layers": 6, "hidden_size": 512, "num_heads": 8, "num_kv_heads": 8,
    "ffn_hidden_size": 1024, "vocab_size": 1000, "max_sequence_length": 512,
    "experts": EXPERTS | {"num_dense_layers": 2},
}  # fmt: skip
ONE_EXPERT = 3 * 512 * 256


def plan(model=MOE, hardware=None, **overrides):
    overrides.setdefault("train.micro_batch_size", 1)
    hardware = hardware or h100(2)
    return build_plan(make_run(model=model, hardware=hardware, precision=BF16, **overrides))


def entries(found, axis):
    return {one.op: one for one in found.communication if one.axis == axis}


def experts_plan(**degrees):
    degrees = {"tp": 1, "pp": 1, "dp": 16, "ep": 8} | degrees
    return plan(**{"train.num_microbatches": 3, "parallelism": degrees})


def test_only_blocks_with_experts_send_tokens_to_them():
    found = entries(experts_plan(), "ep")["all_to_all"]
    once = 512 * 2 * 512 * 2 * 7 / 8  # tokens, copies, width, bytes, to seven others of eight
    assert found.bytes_per_step == 3 * 4 * (6 - 2) * once
    again = entries(experts_plan(recompute="full"), "ep")["all_to_all"]
    assert again.bytes_per_step == 3 * 6 * (6 - 2) * once
    half = entries(experts_plan(recompute="full", recompute_every=2), "ep")["all_to_all"]
    assert half.bytes_per_step == 3 * 5 * (6 - 2) * once


def test_gradients_of_experts_are_summed_over_their_own_replicas():
    found = experts_plan(zero_stage=0)
    plain, apart = entries(found, "dp")["all_reduce"], entries(found, "expert dp")["all_reduce"]
    experts = 4 * 16 * ONE_EXPERT
    assert (plain.group_size, apart.group_size) == (16, 2)
    assert plain.bytes_per_step == pytest.approx(2 * 15 / 16 * 4 * (found.parameters - experts))
    assert apart.bytes_per_step == pytest.approx(2 * 1 / 2 * 4 * experts / 8)
    assert "expert dp" not in {one.axis for one in experts_plan(ep=16).communication}


def test_the_stage_with_the_largest_table_sums_most_where_others_have_the_experts():
    degrees = {"pp": 2, "dp": 8, "zero_stage": 0, "layers_per_stage": [2, 4]}
    found = experts_plan(**degrees)
    experts = 4 * 16 * ONE_EXPERT
    stages = [found.stages[0].parameters, found.stages[1].parameters - experts]
    plain = entries(found, "dp")["all_reduce"].bytes_per_step
    assert plain == pytest.approx(2 * 7 / 8 * 4 * max(stages))
    assert stages[0] > stages[1]


@pytest.mark.parametrize(
    "degrees",
    [{}, {"tp": 2, "dp": 8}, {"ep": 1}, {"recompute": "full"}, {"zero_stage": 2},
     {"zero_stage": 2, "ep": 1}],
)  # fmt: skip
def test_the_table_has_the_seconds_that_nothing_hides(degrees):
    found = experts_plan(overlap_tp=False, **degrees)
    sent_s = sum(one.seconds_per_step for one in found.communication)
    assert found.time.exposed_communication_s == pytest.approx(sent_s, rel=0.01)


def test_experts_in_groups_of_shards_are_summed_over_the_groups():
    found = experts_plan(zero_stage=3, engine="fsdp2", shard_size=8)
    apart = [one for one in found.communication if one.axis == "expert dp"]
    assert [(one.op, one.group_size) for one in apart] == [("all_reduce", 2)]


def test_fsdp2_gathers_a_ranks_own_experts():
    found = experts_plan(zero_stage=3, engine="fsdp2")
    experts = 4 * 16 * ONE_EXPERT
    ends = 2 * 1000 * 512 + 512
    blocks = found.parameters - experts - ends
    plain = entries(found, "dp")["all_gather"].bytes_per_step
    assert plain == pytest.approx(15 / 16 * 2 * 3 * (2 * blocks + ends))
    apart = entries(found, "expert dp")["all_gather"].bytes_per_step
    assert apart == pytest.approx(1 / 2 * 2 * 3 * 2 * experts / 8)


def test_fsdp2_holds_a_block_with_its_experts_also_where_the_first_has_none():
    few, many = (
        plan(
            MOE | {"experts": EXPERTS | {"num_dense_layers": 1, "num_experts": count}},
            parallelism={"tp": 1, "pp": 1, "dp": 16, "zero_stage": 3, "engine": "fsdp2"},
        ).memory.per_stage[0].buffers_bytes
        for count in (16, 64)
    )  # fmt: skip
    # Two blocks gathered in two bytes, one reduced: two bytes, four, and a share of four.
    assert many - few == pytest.approx(48 * ONE_EXPERT * (2 * 2 + 2 + 4 + 4 / 16), rel=0.01)


def test_ranks_that_share_an_experts_state_share_its_update():
    state_s = [
        experts_plan(tp=tp, dp=16 // tp).time.optimizer_s for tp in (1, 2)
    ]  # of as much state each
    assert state_s[1] == pytest.approx(state_s[0], rel=0.02)


def test_blocks_that_keep_their_activations_sum_once_less():
    def sums(every):
        degrees = {"tp": 8, "pp": 1, "dp": 2, "recompute": "full", "recompute_every": every}
        found = plan(LLAMA3_8B, parallelism=degrees, **{"train.num_microbatches": 1})
        return entries(found, "tp")["all_reduce"].bytes_per_step

    each = 2 * 7 / 8 * 8192 * 4096 * 2
    assert sums(1) == pytest.approx(each * (5 * 32 + 2))
    assert sums(2) == pytest.approx(each * (4 * 32 + 16 + 2))


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_weights_from_the_nodes_ram_are_listed(zero_stage):
    degrees = {"tp": 1, "pp": 1, "dp": 8, "offload": "parameters", "zero_stage": zero_stage}
    found = plan(LLAMA3_8B, h100(1), parallelism=degrees, **{"train.num_microbatches": 3})
    (fetch,) = entries(found, "host").values()
    share = found.parameters / (8 if zero_stage == 3 else 1)
    assert fetch.bytes_per_step == pytest.approx(3 * 2 * 2 * share)
    assert fetch.seconds_per_step == pytest.approx(fetch.bytes_per_step / 25e9)
    assert found.time.exposed_communication_s > 0


def test_groups_of_shards_fetch_what_they_share():
    degrees = {"tp": 1, "pp": 1, "dp": 8, "offload": "parameters", "zero_stage": 3}
    whole = plan(LLAMA3_8B, h100(1), parallelism=degrees)
    halves = plan(LLAMA3_8B, h100(1), parallelism=degrees | {"shard_size": 4})
    sent = [entries(found, "host")["fetch"].bytes_per_step for found in (whole, halves)]
    assert sent[1] == pytest.approx(2 * sent[0], rel=1e-6)


@pytest.mark.parametrize("degrees", [{"offload": "parameters"}, {"zero_stage": 3}])
def test_one_device_may_wait_for_nobody(degrees):
    degrees = {"tp": 1, "pp": 1, "dp": 1} | degrees
    few = {"parallelism": degrees, "train.sequence_length": 8}
    found = plan(LLAMA3_70B | {"num_layers": 2}, h100(1, 1), **few)
    waits = {warning.id: warning.fix for warning in found.warnings}
    if "offload" in degrees:
        assert waits["communication-bound"].startswith("parallelism.offload=none")
    else:
        assert found.time.exposed_communication_s == 0
        assert "communication-bound" not in waits


def test_stages_on_nodes_of_six_may_be_on_two():
    def crosses(gpus_per_node, pp):
        degrees = {"tp": 1, "pp": pp, "dp": 12 // pp, "order": ["pp", "tp", "cp", "dp"]}
        found = plan(MOE, h100(12 // gpus_per_node, gpus_per_node), parallelism=degrees)
        return entries(found, "pp")["send_recv"].crosses_nodes

    assert crosses(6, 4)  # ranks 4 to 7
    assert not crosses(6, 3)
    assert not crosses(12, 4)


def test_sharded_weights_are_told_to_travel_for_more_tokens():
    degrees = {"tp": 1, "pp": 1, "dp": 16, "zero_stage": 3}
    short = {"train.sequence_length": 512, "train.num_microbatches": 2}
    found = plan(LLAMA3_8B, parallelism=degrees, **short)
    (bound,) = [one for one in found.warnings if one.id == "communication-bound"]
    assert bound.fix == "train.micro_batch_size=2"
    better = plan(LLAMA3_8B, parallelism=degrees, **short, **{"train.micro_batch_size": 2})
    assert better.time.tokens_per_s > 1.5 * found.time.tokens_per_s


@pytest.mark.parametrize(("count", "fix"), [(1, ""), (64, "parallelism.ep=8")])
def test_experts_stay_where_they_are_where_their_gradients_would_cost_more(count, fix):
    """Once per step, beside tokens for every microbatch."""
    degrees = {"tp": 1, "pp": 1, "dp": 16, "ep": 16}
    wide = MOE | {"experts": EXPERTS | {"ffn_hidden_size": 4096}}
    found = plan(wide, parallelism=degrees, **{"train.num_microbatches": count})
    fixes = {warning.id: warning.fix for warning in found.warnings}
    assert fixes["ep-crosses-nodes"] == fix


@pytest.mark.parametrize("degrees", [{"dp": 8}, {"dp": 4, "cp": 2}, {"dp": 8, "shard_size": 4}])
def test_the_step_waits_for_the_rows_of_a_tied_table_that_the_table_has(degrees):
    """FSDP2 has summed them over the replicas that share them, of dp and cp."""
    degrees = {"tp": 1, "pp": 2, "zero_stage": 1, "engine": "fsdp2"} | degrees
    found = plan(GPT2_124M, parallelism=degrees, **{"train.num_microbatches": 2})
    (sent,) = entries(found, "embedding").values()
    assert sent.bytes_per_step == 4 * 50257 * 768 // degrees.get("shard_size", 8)
    sent_s = sum(one.seconds_per_step for one in found.communication if one.axis != "pp")
    assert found.time.exposed_communication_s < sent_s


def test_fsdp2_reduces_into_parts_for_all_of_dp_and_cp():
    def buffers(**degrees):
        degrees = {"tp": 1, "pp": 1, "zero_stage": 3, "engine": "fsdp2"} | degrees
        short = {"train.sequence_length": 16}
        return plan(LLAMA3_8B, parallelism=degrees, **short).memory.per_stage[0].buffers_bytes

    assert buffers(dp=8, cp=2) == pytest.approx(buffers(dp=16), rel=2e-3)


def test_experts_that_every_rank_has_are_told_to_be_dealt_out_where_that_is_quicker():
    degrees, eight = {"tp": 2, "pp": 1, "dp": 8}, {"train.num_microbatches": 8}
    wide = MOE | {"experts": EXPERTS | {"ffn_hidden_size": 4096}}
    found = plan(wide, parallelism=degrees, **eight)
    (warned,) = [one for one in found.warnings if one.id == "experts-everywhere"]
    assert warned.fix == "parallelism.ep=8"
    better = plan(wide, parallelism=degrees | {"ep": 8}, **eight)
    assert better.time.tokens_per_s > found.time.tokens_per_s
    for other in (better, plan(MOE, parallelism=degrees)):  # small experts are quicker as they are
        assert "experts-everywhere" not in [one.id for one in other.warnings]


@pytest.mark.parametrize("nodes", [1, 16])
def test_experts_stay_where_a_node_has_no_ranks_to_deal_them_out_to(nodes):
    found = plan(MOE, h100(nodes, 1), parallelism={"tp": 1, "pp": 1, "dp": nodes})
    assert "experts-everywhere" not in [one.id for one in found.warnings]


@pytest.mark.parametrize(
    ("schedule", "pp", "sends"),
    [("1f1b", 2, 1), ("1f1b", 4, 2), ("interleaved_1f1b", 2, 3), ("interleaved_1f1b", 3, 4),
     ("zb_v", 2, 2), ("zb_v", 3, 4)],
)  # fmt: skip
def test_a_stage_sends_what_its_neighbours_do_not_have(schedule, pp, sends):
    """Of two stages that fold back one has both parts in the middle."""
    degrees = {"tp": 1, "pp": pp, "dp": 1, "schedule": schedule,
               "vpp": 1 if schedule == "1f1b" else 2}  # fmt: skip
    found = plan(MOE, h100(1, pp), parallelism=degrees, **{"train.num_microbatches": 12})
    whole = 512 * 512 * 2  # sequence x hidden in two bytes
    assert entries(found, "pp")["send_recv"].bytes_per_step == 12 * sends * whole


def test_routers_behind_plain_blocks_have_partial_gradients():
    degrees = {"tp": 2, "pp": 1, "dp": 8, "sequence_parallel": True}
    plain, mixed = (
        entries(plan(MOE | {"experts": EXPERTS | {"num_dense_layers": first}},
                     parallelism=degrees), "tp")["all_reduce"].bytes_per_step
        for first in (6, 2)
    )  # fmt: skip
    assert mixed - plain == 4 * (512 * 16) * 4  # blocks, router, float32; two ranks
