"""No order of ranks has quicker links than those that bounds of the search are made of."""

import pytest

from launcher.plan.encoder import encoder_job
from launcher.plan.execution import runtime_job
from launcher.plan.fill import fill_run
from launcher.plan.links import stride_link, transfer_s
from launcher.plan.operator_records import size_of
from launcher.plan.search_links import quickest_tp
from tests.factory import LLAMA3_70B, TINY, h100, make_run

HEADS = {"num_heads": 16, "num_kv_heads": 16, "hidden_size": 1024, "max_sequence_length": 4096}
MODELS = {
    "decoder": LLAMA3_70B,
    "short answers": TINY | HEADS | {"encoder": {"num_layers": 4, "decoder_length": 16}},
    "long answers": TINY | HEADS | {"encoder": {"num_layers": 4, "decoder_length": 8192}},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [2, 8, 16])
@pytest.mark.parametrize("micro", [1, 8])
def test_sums_of_both_sides_are_bounded(name, tp, micro):
    run = make_run(
        model=MODELS[name], hardware=h100(8),
        parallelism={"tp": tp, "pp": 1, "dp": 64 // tp},
        **{"train.micro_batch_size": micro},
    )  # fmt: skip
    filled = fill_run(run)
    job = runtime_job(filled.run, filled.layout)
    bound = quickest_tp(job)
    sides = [job, encoder_job(job)] if job.model.encoder else [job]
    for side in sides:
        payload = size_of(side).tokens * side.model.hidden_size * side.execution.element_bytes
        for stride in (1, 2, 4, 8):
            link = stride_link(job.hardware, 8, stride, tp)
            least = transfer_s("all_reduce", payload, bound)
            assert least <= transfer_s("all_reduce", payload, link)
