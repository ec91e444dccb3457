"""Bounds of blocks that differ in cp alone, and of microbatches by their multiples, are bounds."""

from itertools import product

import pytest

from launcher.config.load import load_run
from launcher.plan.fill import close_shared
from launcher.plan.search_choice import changed
from launcher.plan.search_cost import Coster
from launcher.plan.search_floors import Floors
from launcher.plan.search_jobs import Mesh

WORDS = {
    "llama3_8b": ("model=llama3_8b", "hardware=h100x64"),
    "mixtral_8x7b": ("model=mixtral_8x7b", "hardware=mi300x64"),
    "deepseek_v2_lite": ("model=deepseek_v2_lite", "hardware=h100x64"),
}


def floors_of(name, **degrees):
    run = changed(close_shared(load_run(list(WORDS[name])).run), parallelism=degrees)
    return Floors(Coster(run, 64))


@pytest.mark.parametrize("overlap_tp", [True, False])
@pytest.mark.parametrize("cp_mode", ["ring", "all_gather", "ulysses"])
@pytest.mark.parametrize("name", WORDS)
def test_no_block_takes_less_than_its_family(name, cp_mode, overlap_tp):
    floors = floors_of(name, cp_mode=cp_mode, overlap_tp=overlap_tp)
    eps = (1, 2, 8) if floors.model.experts else (1,)
    for tp, ep, split in product((1, 2, 8, 16), eps, (False, True)):
        least = floors.family_s(Mesh(tp, 1, ep, split, 24, "none"))
        assert least > 0
        for cp, micro in product((1, 2, 4, 8, 16), (1, 3, 8, 24, 48, 96)):
            if 24 * cp % micro == 0:
                block = Mesh(tp, cp, ep, split, micro, "none")
                assert least <= floors.block_s(block) + floors.end_s(micro, [(1, 1, 1)])
                assert least <= floors.batches_s(block, [(1, 1, 1)]) * (1 + 1e-12)


@pytest.mark.parametrize("overlap_tp", [True, False])
@pytest.mark.parametrize("name", WORDS)
def test_a_microbatch_takes_no_less_than_the_multiple_that_is_timed_says(name, overlap_tp):
    floors, batches = floors_of(name, overlap_tp=overlap_tp), [(1, 4, 6), (2, 2, 12)]
    for tp, cp, split in product((1, 2, 8), (1, 4), (False, True)):
        block = Mesh(tp, cp, 1, split, 24, "none")
        assert floors.multiple_s(block, 6, batches) == 0.0  # nothing is timed
        bounds = []
        for micro in (24, 12, 4, 2, 1):
            bounds.append(floors.multiple_s(block, micro, batches))
            exact = floors.micro_s(block, block._replace(micro=micro), batches)
            assert bounds[-1] <= exact * (1 + 1e-12)
            assert floors.multiple_s(block, micro, batches) == 0.0  # its own time is known
        assert bounds[0] == 0.0 < bounds[1]
