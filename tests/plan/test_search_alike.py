"""What meshes of a search have in common is what each of them has by itself."""

from itertools import product

import pytest

from launcher.config.load import load_run
from launcher.plan.activations import block_kept_bytes, dense_difference_bytes
from launcher.plan.fill import close_shared
from launcher.plan.memory import in_flight_bytes
from launcher.plan.records import Stage
from launcher.plan.search_cost import Coster
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Memory
from launcher.plan.stage_time import list_kernels
from launcher.plan.temporaries import backward_temporary_bytes

SHARDING = ("deepspeed", 1, "none")
RUNS = {
    "dense": ["model=llama3_8b"],
    "window": ["model=mistral_7b", "train.sequence_length=8192"],
    "no plain MLP": ["model=qwen3_30b_a3b"],
    "plain MLPs first": ["model=deepseek_v2_lite"],
    "every other block has experts": ["model=llama4_maverick"],
    "ulysses": ["model=llama3_8b", "parallelism.cp_mode=ulysses"],
    "keys of all": ["model=llama3_8b", "parallelism.cp_mode=all_gather"],
    "documents": ["model=llama3_8b", "data.packing=documents"],
    "every other block": ["model=deepseek_v2_lite", "parallelism.recompute_every=2"],
    "encoder": ["model=t5_3b"],
}
LARGEST_FIRST = sorted(
    product((1, 2), (1, 2, 4), (1, 4), (False, True), (4, 2, 1)), key=lambda one: -one[4]
)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("name", RUNS)
def test_of_every_mesh(name, recompute):
    run = close_shared(
        load_run(["hardware=h100x64", f"parallelism.recompute={recompute}", *RUNS[name]]).run
    )
    coster = Coster(run, 64)
    memory = Memory(coster, [SHARDING])
    layers = run.model.num_layers
    whole = Stage(
        stage=0, first_layer=0, end_layer=layers, parameters=0, is_first=True, is_last=True,
        chunks=(),
    )  # fmt: skip
    for tp, cp, ep, split, micro in LARGEST_FIRST:
        mesh = Mesh(tp, cp, ep if run.model.experts else 1, split, micro, recompute)
        job = coster.mesh_job(mesh, False)
        modes = {recompute, "none"} if job.execution.recompute_share < 1 else {recompute}
        block = min(
            block_kept_bytes(job, mode) + min(0, dense_difference_bytes(job, mode))
            for mode in modes
        )
        usual = min(block_kept_bytes(job, mode) for mode in modes)
        assert memory.kept(mesh) == (block, backward_temporary_bytes(job), usual)
        assert memory._whole_bytes(mesh, layers) == in_flight_bytes(job, whole, 1)
        kernels, alone = coster.kernels(mesh), list_kernels(job)
        for part in ("block", "dense"):
            one, other = getattr(kernels, part), getattr(alone, part)
            assert one.times == pytest.approx(other.times, rel=1e-12)
            assert one.work.all_to_all_bytes == other.work.all_to_all_bytes
        assert (kernels.embedding, kernels.head) == (alone.embedding, alone.head)
        assert (kernels.dense is kernels.block) == (alone.dense is alone.block)
