"""Memory of a search, put together from what like layouts share, is what a plan of each says."""

from dataclasses import fields
from random import Random

import pytest

from launcher.config.load import load_run
from launcher.plan.estimate import estimate_layout_memory
from launcher.plan.fill import close_shared
from launcher.plan.search_choice import ORDERS, RECOMPUTE, SHARDING, Choice
from launcher.plan.search_cost import Coster
from launcher.plan.search_memory import Memory

NUM_DEVICES = 64
CHUNKS = {"1f1b": 1, "gpipe": 1, "zb_h1": 1, "interleaved_1f1b": 2, "zb_v": 2}
RUNS = {
    "dense": ["model=llama3_8b"],
    "window": ["model=mistral_7b", "train.sequence_length=8192"],
    "plain MLPs first": ["model=deepseek_v2_lite"],
    "every other block has experts": ["model=llama4_maverick"],
    "ulysses": ["model=llama3_8b", "parallelism.cp_mode=ulysses"],
    "documents": ["model=llama3_8b", "data.packing=documents"],
    "every other block": ["model=deepseek_v2_lite", "parallelism.recompute_every=2"],
    "encoder": ["model=t5_3b"],
}


@pytest.mark.parametrize("name", RUNS)
def test_of_any_layouts_in_any_order(name):
    run = close_shared(load_run([f"hardware=h100x{NUM_DEVICES}", *RUNS[name]]).run)
    coster = Coster(run, NUM_DEVICES)
    memory = Memory(coster, SHARDING)
    random = Random(name)
    for _ in range(300):
        choice = any_choice(random, bool(run.model.experts), bool(run.model.encoder))
        plain = estimate_layout_memory(run, coster.layout(choice))
        assert memory.peak_bytes(choice) == plain.peak_bytes, choice
        assert memory.fits(choice) == plain.fits, choice


def any_choice(random: Random, has_experts: bool, has_encoder: bool) -> Choice:
    """A layout whose degrees fill the devices; whether rules allow it does not matter here."""
    tp = random.choice([1, 2, 4])
    cp, pp = (1, 1) if has_encoder else (random.choice([1, 2]), random.choice([1, 2, 4]))
    schedule = random.choice(list(CHUNKS)) if pp > 1 else "1f1b"
    shardings = [one for one in SHARDING if pp == 1 or one[1] < 2]
    values = [
        tp, cp, random.choice([1, 2, 4]) if has_experts else 1, pp, CHUNKS[schedule], schedule,
        random.choice(RECOMPUTE), *random.choice(shardings), tp > 1 and random.random() < 0.5,
        random.choice(ORDERS), random.choice([1, 2]), random.choice([1, 4, 8, 16]),
        NUM_DEVICES // (tp * cp * pp),
    ]  # fmt: skip
    return Choice(**dict(zip([field.name for field in fields(Choice)], values, strict=True)))
