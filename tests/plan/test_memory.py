"""Memory: ZeRO's published figure, sharding by stage, and activations by the schedule."""

import pytest

from launcher.config.schema import Model
from launcher.plan.build import build_plan
from launcher.plan.execution import runtime_job
from launcher.plan.memory import HOST_BYTES_PER_PROCESS, USABLE_SHARE, zero_model_state_bytes
from launcher.plan.memory_shares import offloaded_bytes, snapshot_bytes
from launcher.plan.mesh import build_mesh
from launcher.plan.stages import count_stage_parameters
from tests.factory import GPT2_124M, TINY, TINY_GPT, h100, make_run

BF16 = {"name": "bf16", "compute": "bf16"}
FP32 = {"name": "fp32", "compute": "fp32"}


@pytest.mark.parametrize(
    ("zero_stage", "published_gb"), [(0, "120"), (1, "31.4"), (2, "16.6"), (3, "1.9")]
)
def test_zero_figure_1(zero_stage, published_gb):
    digits = len(published_gb.partition(".")[2])
    found = zero_model_state_bytes(7.5e9, zero_stage, 64) / 1e9
    assert f"{found:.{digits}f}" == published_gb


def stage_memory(**overrides):
    parallelism = {"tp": 1, "pp": 1, "dp": 8} | overrides.pop("parallelism", {})
    overrides = {"precision": BF16, "parallelism": parallelism} | overrides
    run = make_run(model=GPT2_124M, hardware=h100(1), **overrides)
    return build_plan(run).memory.per_stage


SIZE = 124_439_808


@pytest.mark.parametrize(
    ("zero_stage", "weights", "gradients", "optimizer"),
    [
        (0, 2 * SIZE, 4 * SIZE, 12 * SIZE),
        (1, 2 * SIZE, 4 * SIZE, 12 * SIZE // 8),
        (2, 2 * SIZE, 4 * SIZE // 8, 12 * SIZE // 8),
        (3, 2 * SIZE // 8, 4 * SIZE // 8, 12 * SIZE // 8),
    ],
)
def test_zero_shards_one_kind_after_the_other(zero_stage, weights, gradients, optimizer):
    (memory,) = stage_memory(parallelism={"zero_stage": zero_stage})
    assert memory.parameters_bytes == weights
    assert memory.gradients_bytes == gradients
    assert memory.optimizer_bytes == optimizer


def test_gradients_stay_whole_under_zero_2_inside_a_pipeline():
    for memory in stage_memory(parallelism={"pp": 2, "dp": 4, "zero_stage": 2}):
        assert memory.gradients_bytes == 2 * memory.parameters_bytes


def test_float32_without_zero_needs_no_master_copy():
    (plain,) = stage_memory(parallelism={"zero_stage": 0}, precision=FP32)
    assert plain.optimizer_bytes == 8 * SIZE
    (zero,) = stage_memory(parallelism={"zero_stage": 1}, precision=FP32)
    assert zero.optimizer_bytes == 12 * SIZE // 8


def test_sgd_without_momentum_has_no_state_but_the_master():
    (memory,) = stage_memory(
        parallelism={"zero_stage": 0}, optimizer={"name": "sgd", "learning_rate": 0.1}
    )
    assert memory.optimizer_bytes == 4 * SIZE


@pytest.mark.parametrize("m", [1, 2, 4, 9])
def test_activations_of_a_middle_stage_follow_the_microbatches_in_flight(m):
    def middle(schedule, count):
        run = make_run(
            model=TINY | {"num_layers": 8},
            parallelism={"tp": 1, "pp": 4, "dp": 1, "schedule": schedule},
            **{"train.num_microbatches": count},
        )
        return build_plan(run).memory.per_stage[1].activations_bytes

    one = middle("1f1b", 1)
    assert middle("1f1b", m) == min(3, m) * one
    assert middle("gpipe", m) == m * one


def test_recomputation_shrinks_activations_and_nothing_else():
    none, full = (stage_memory(parallelism={"recompute": mode})[0] for mode in ("none", "full"))
    assert full.activations_bytes < none.activations_bytes / 3
    assert full.parameters_bytes == none.parameters_bytes
    assert full.optimizer_bytes == none.optimizer_bytes


def test_tensor_parallel_ranks_share_matrices():
    model = Model.model_validate(TINY_GPT)
    (one,), (two,) = (
        build_plan(make_run(model=TINY_GPT, **{"parallelism.tp": tp})).memory.per_stage
        for tp in (1, 2)
    )
    assert one.parameters_bytes == 4 * count_stage_parameters(model, 4, True, True)
    assert two.parameters_bytes == 4 * count_stage_parameters(model, 4, True, True, tp=2)
    assert two.parameters_bytes < 0.6 * one.parameters_bytes


def test_total_is_the_sum_and_the_fit_leaves_a_margin():
    plan = build_plan(make_run())
    memory = plan.memory
    assert memory.usable_bytes == int(USABLE_SHARE * memory.capacity_bytes)
    assert memory.peak_bytes == max(stage.total_bytes for stage in memory.per_stage)
    assert memory.fits
    small = make_run(
        **{"hardware.gpu": make_run().hardware.gpu.model_dump() | {"memory_bytes": 10**8}}
    )
    assert not build_plan(small).memory.fits


def test_the_copy_of_a_checkpoint_is_host_memory():
    saving = {"every_steps": 10}
    on_gpus = {"hardware": h100(1), "parallelism": {"dp": 8}}
    without, with_it = (
        build_plan(make_run(**on_gpus, checkpoint=policy)).memory for policy in ({}, saving)
    )
    parameters = build_plan(make_run()).parameters
    # 12 bytes per parameter, shared by the 8 replicas of one node.
    added = with_it.host_bytes_per_node - without.host_bytes_per_node
    assert added == pytest.approx(12 * parameters, rel=1e-3)
    assert with_it.peak_bytes == without.peak_bytes
    on_cpu = [build_plan(make_run(checkpoint=policy)).memory for policy in ({}, saving)]
    assert on_cpu[1].peak_bytes - on_cpu[0].peak_bytes == 12 * parameters


def test_offloaded_optimizer_state_moves_into_the_nodes_memory():
    def plan(offload):
        run = make_run(model=GPT2_124M, hardware=h100(1), precision=BF16,
                       parallelism={"tp": 1, "pp": 1, "dp": 8, "offload": offload})  # fmt: skip
        return build_plan(run)

    here, there, all_of_it = plan("none"), plan("optimizer"), plan("parameters")
    assert there.memory.per_stage[0].optimizer_bytes == 0
    moved = there.memory.host_bytes_per_node - here.memory.host_bytes_per_node
    assert moved == pytest.approx(SIZE * (12 + 4), rel=1e-3)  # of 8 ranks, an eighth each
    weights = [one.memory.per_stage[0].parameters_bytes for one in (there, all_of_it)]
    block, table = 7_087_872, 50257 * 768  # of GPT-2: a block, and the table of both ends
    ends = table + 1024 * 768 + 2 * 768
    assert (weights[0], weights[1]) == (2 * SIZE, 2 * (block + ends))
    assert there.time.optimizer_s > here.time.optimizer_s


def test_blocks_with_a_plain_mlp_keep_what_it_is_wider_or_narrower_than_experts():
    """Gate, its silu, up and what the last product reads, of every token in two bytes."""
    experts = {"num_experts": 4, "experts_per_token": 1, "ffn_hidden_size": 64}

    def kept(dense, recompute, width):
        model = TINY | {"ffn_hidden_size": width, "experts": experts | {"num_dense_layers": dense}}
        degrees = {"tp": 1, "pp": 1, "dp": 8, "recompute": recompute}
        run = make_run(model=model, hardware=h100(1), precision=BF16, parallelism=degrees)
        (memory,) = build_plan(run).memory.per_stage
        return memory.activations_bytes

    for recompute in ("none", "selective"):
        more = kept(2, recompute, 4096) - kept(2, recompute, 2048)
        assert more == 2 * 64 * 4 * 2048 * 2
        assert kept(0, recompute, 4096) == kept(0, recompute, 2048)
        # Of 64 tokens in two blocks: routed copies on both sides, and the router's in and out.
        less = kept(0, recompute, 64) - kept(2, recompute, 64)
        assert less == 2 * 64 * (2 * TINY["hidden_size"] + 2 * 4) * 2
    assert kept(2, "full", 4096) == kept(0, "full", 4096)


def test_a_stage_in_the_middle_holds_two_blocks_of_what_waits_in_ram():
    degrees = {"tp": 1, "pp": 4, "dp": 2, "offload": "parameters"}
    run = make_run(model=GPT2_124M, hardware=h100(1), precision=BF16, parallelism=degrees)
    held = [stage.parameters_bytes for stage in build_plan(run).memory.per_stage]
    assert held[1] == held[2] == 2 * 2 * 7_087_872
    assert min(held[0], held[3]) > held[1]


def test_of_sharded_weights_that_wait_in_ram_a_rank_holds_its_part_of_two_blocks():
    def held(**degrees):
        degrees = {"tp": 1, "pp": 1, "dp": 8, "offload": "parameters"} | degrees
        run = make_run(model=GPT2_124M, hardware=h100(1), precision=BF16, parallelism=degrees)
        return build_plan(run).memory.per_stage[0].parameters_bytes

    assert held(zero_stage=3) == pytest.approx(held(zero_stage=2) / 8, rel=1e-4)


def test_of_every_second_block_only_inputs_are_kept():
    def activations(recompute, every=1):
        (memory,) = stage_memory(parallelism={"recompute": recompute, "recompute_every": every})
        return memory.activations_bytes

    most, least = activations("none"), activations("full")
    assert activations("full", 2) == pytest.approx((most + least) / 2, rel=1e-3)


def test_masks_of_packed_documents_are_counted_once_per_microbatch_in_flight():
    """Two bytes for every pair of tokens; one mask serves all blocks."""
    train = {"micro_batch_size": 2, "num_microbatches": 4, "sequence_length": 1024}
    plain, packed = (
        stage_memory(train=train, data={"packing": packing})[0].activations_bytes
        for packing in ("concatenate", "documents")
    )
    assert packed - plain == 2 * 1024**2 * 2


@pytest.mark.parametrize("order", [("tp", "cp", "dp", "pp"), ("pp", "tp", "cp", "dp")])
@pytest.mark.parametrize("nodes", [1, 4])
def test_ranks_of_a_node_take_the_ram_of_their_own_stages(order, nodes):
    degrees = {"tp": 1, "pp": 4, "dp": 2 * nodes, "order": order, "offload": "optimizer"}
    plan = build_plan(make_run(model=GPT2_124M, hardware=h100(nodes), parallelism=degrees))
    job = runtime_job(plan.run, plan.layout)
    each = [HOST_BYTES_PER_PROCESS + snapshot_bytes(job, stage) + offloaded_bytes(job, stage)
            for stage in plan.stages]  # fmt: skip
    assert len(set(each)) > 1
    mesh = build_mesh(plan.layout)
    ranks = [each[mesh.coordinates(rank)["pp"]] for rank in range(mesh.world_size)]
    of_nodes = [sum(ranks[8 * node : 8 * node + 8]) for node in range(nodes)]
    assert plan.memory.host_bytes_per_node == max(of_nodes)
