"""What only the notes say of a row: groups of shards, 8-bit messages, degrees, other training."""

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import read_row

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    ("cells", "size"),
    [({"zero_or_fsdp": "fsdp", "notes": "HSDP: 4 replicas of 16"}, 16),
     ({"zero_or_fsdp": "fsdp", "notes": "hybrid sharding"}, 8),
     ({"zero_or_fsdp": "fsdp", "notes": "no HSDP"}, None),
     ({"zero_or_fsdp": "fsdp", "notes": "faster than HSDP"}, None),
     ({"zero_or_fsdp": "fsdp"}, None), ({"zero_or_fsdp": "0", "notes": "HSDP"}, None)],
)  # fmt: skip
def test_notes_may_say_that_state_is_shared_in_groups(cells, size):
    assert job(**cells).execution.shard_size == size


@pytest.mark.parametrize(("notes", "size"), [("ZeRO++ (qwZ, qgZ)", 1), ("vs. ZeRO++", 2), ("", 2)])
def test_notes_may_say_that_messages_are_of_8_bits(notes, size):
    found = job(source="DeepSpeed", zero_or_fsdp="zero3", notes=notes).execution
    assert (found.gather_bytes, found.reduce_bytes) == (size, size)


@pytest.mark.parametrize(
    ("cells", "cp"),
    [({"notes": "DeepSpeed-Ulysses SP=8"}, 8), ({"notes": "CP=4"}, 4),
     ({"notes": "context parallelism of 2"}, 2), ({"notes": "CP=4", "cp": 1}, 1),
     ({"notes": "Ulysses (2309.14509)"}, 1), ({"notes": "Ulysses 4 x ring 2", "cp": 8}, 8),
     ({"notes": "no CP 4"}, 1)],
)  # fmt: skip
def test_ranks_that_share_a_sequence_are_counted_by_notes_where_no_cell_does(cells, cp):
    found = read_row(llama(zero_or_fsdp="zero3", **cells), FACTS)
    assert found.job.layout.cp == cp
    said = any(words.startswith(f"cp={cp}, by ") for words in found.assumed)
    assert said is (cp > 1 and "cp" not in cells)


def test_chunks_of_a_stage_may_be_called_vp():
    assert job(pp=4, notes="interleaved, VP=4").layout.vpp == 4


@pytest.mark.parametrize("cells", [{"notes": "QLoRA"}, {"id": "7b_lora_r16"}, {"notes": "PEFT"}])
def test_rows_whose_weights_are_mostly_frozen_are_unsupported(cells):
    answer = predict_row(llama(**cells), FACTS)
    assert (answer.status, "training of all parameters" in answer.reason) == ("unsupported", True)
    for notes in ("full fine-tuning, not LoRA", "8 adapters of 200 Gb/s"):
        assert predict_row(llama(notes=notes), FACTS).status == "predicted"


@pytest.mark.parametrize("notes", ["Adafactor", "Muon", "8-bit Adam", "Lion optimizer"])
def test_an_optimizer_that_is_none_of_ours_is_said_to_be_taken_for_adam(notes):
    said = [words for words in read_row(llama(notes=notes), FACTS).assumed if "Adam in" in words]
    assert len(said) == 1
    assert not any("Adam in" in words for words in read_row(llama(), FACTS).assumed)


def test_what_empty_cells_are_taken_for_is_listed():
    empty = dict.fromkeys(("recompute", "precision", "sp", "vpp"), "")
    said = set(read_row(llama(tp=2, pp=4, notes="interleaved", **empty), FACTS).assumed)
    assert said >= {"recompute=none", "precision=bf16", "sp=yes", "vpp=2"}
    full = {"recompute": "full", "precision": "bf16", "sp": "no", "vpp": 2}
    said = set(read_row(llama(tp=2, pp=4, **full), FACTS).assumed)
    assert not {name for name in full if any(words.startswith(f"{name}=") for words in said)}
    guessed = predict_row(llama(zero_or_fsdp="zero3", gpus=8, seq=32768), FACTS)
    assert "recompute=full" in guessed.assumed
    assert "recompute=none" not in guessed.assumed
