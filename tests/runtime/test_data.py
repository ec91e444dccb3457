"""Samples: the same in every layout, each once per epoch, and refused where they cannot be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.text import split_text, whole_text
from launcher.errors import ConfigError
from launcher.plan.records import Layout
from launcher.runtime.corpus import SEPARATOR, open_texts, stdlib_documents
from launcher.runtime.data import Batches, open_datasets
from launcher.runtime.order import permute
from launcher.runtime.progress import Progress
from launcher.runtime.windows import TokenWindows
from tests.factory import make_run
from tests.runtime.stages import make_layout


def no_barrier() -> None:
    pass


def make_windows(num_tokens: int = 1000, length: int = 16, seed: int = 5) -> TokenWindows:
    return TokenWindows(whole_text(np.arange(num_tokens, dtype=np.uint16), None), length, seed)


def make_batches(**sizes: int) -> Batches:
    return Batches(make_windows(**sizes), vocab_size=1000)


def window(windows: TokenWindows, sample: int) -> np.ndarray:
    return windows.read(np.array([sample])).tokens_NS1[0]


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permutation_reaches_every_position_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permutation_is_not_the_identity_and_depends_on_the_key() -> None:
    orders = [permute(np.arange(1000), 1000, key) for key in (1, 2)]
    fixed = sum(value == position for position, value in enumerate(orders[0]))
    same = sum(left == right for left, right in zip(*orders, strict=True))
    assert fixed < 10
    assert same < 10


def test_every_token_is_a_label_once_per_epoch() -> None:
    windows = make_windows(num_tokens=16 * 60 + 1)
    for epoch in range(3):
        first = epoch * windows.per_epoch
        labels = np.concatenate(
            [window(windows, sample)[1:] for sample in range(first, first + windows.per_epoch)]
        )
        assert sorted(labels) == list(range(1, 16 * 60 + 1))


def test_epochs_have_different_orders() -> None:
    windows = make_windows()
    count = windows.per_epoch
    starts = [[int(window(windows, e * count + i)[0]) for i in range(count)] for e in range(2)]
    assert sorted(starts[0]) == sorted(starts[1])
    assert starts[0] != starts[1]


LAYOUTS = [
    {"micro_batch_size": 8},
    {"micro_batch_size": 2, "num_microbatches": 4},
    {"micro_batch_size": 1, "num_microbatches": 8, "tp": 2, "pp": 2},
    {"micro_batch_size": 2, "num_microbatches": 2, "dp": 2},
    {"micro_batch_size": 1, "num_microbatches": 2, "dp": 4},
]


def at(step: int, layout: Layout) -> Progress:
    return Progress(step=step, consumed_samples=step * layout.global_batch_size)


def digest_of_step(sizes: dict[str, int], step: int) -> str:
    """Hash of tokens and labels of a step, replicas one after the other."""
    layout, windows = make_layout(**sizes), make_batches()
    digest = hashlib.sha256()
    for dp_index in range(layout.dp):
        for microbatch in windows.step_samples(at(step, layout), layout, dp_index):
            for tokens, labels in zip(
                microbatch.tokens_BS, microbatch.context.labels_BS, strict=True
            ):
                digest.update(tokens.numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("sizes", LAYOUTS[1:])
def test_a_step_reads_the_same_tokens_in_any_layout(sizes: dict[str, int]) -> None:
    digests = [digest_of_step(sizes, step) for step in range(12)]
    assert digests == [digest_of_step(LAYOUTS[0], step) for step in range(12)]
    assert len(set(digests)) == 12


def test_microbatches_name_their_first_global_sample() -> None:
    layout = make_layout(micro_batch_size=2, num_microbatches=3, dp=2)
    first = [m.context.first_sample for m in make_batches().step_samples(at(4, layout), layout, 1)]
    assert first == [4 * 12 + 6, 4 * 12 + 8, 4 * 12 + 10]


def test_a_changed_batch_goes_on_with_the_next_sample() -> None:
    """Consumed samples, not steps, say what comes: 3 steps of 12 samples, then steps of 8."""
    batches, progress, seen = make_batches(), Progress(), []
    for size, steps in ((3, 3), (2, 2)):
        layout = make_layout(micro_batch_size=2, num_microbatches=size, dp=2)
        for _ in range(steps):
            for dp_index in range(2):
                for microbatch in batches.step_samples(progress, layout, dp_index):
                    seen += microbatch.tokens_BS[:, 0].tolist()
            progress = progress.after(layout.global_batch_size)
    assert progress == Progress(step=5, consumed_samples=3 * 12 + 2 * 8)
    assert seen == [
        int(window(make_windows(), sample)[0]) for sample in range(progress.consumed_samples)
    ]


def test_labels_are_the_next_tokens() -> None:
    (microbatch,) = make_batches().step_samples(Progress(), make_layout(), 0)
    assert microbatch.tokens_BS.dtype == torch.int64
    assert torch.equal(microbatch.tokens_BS[:, 1:], microbatch.context.labels_BS[:, :-1])
    assert torch.equal(microbatch.context.labels_BS, microbatch.tokens_BS + 1)


def test_standard_library_is_real_text_of_some_megabytes() -> None:
    documents = list(stdlib_documents())
    assert 4e6 < sum(map(len, documents)) < 14e6
    assert sum(SEPARATOR in document[:-1] for document in documents) == 0
    assert any(b"def loads(" in document for document in documents)


def test_held_out_documents_are_the_tail() -> None:
    text = whole_text(np.arange(100), np.arange(0, 101, 10))
    cuts = {0.0: 100, 0.01: 90, 0.1: 90, 0.15: 80, 0.95: 0}
    for share, cut in cuts.items():
        train, held_out = split_text(text, share)
        assert (train.start, train.end, held_out.start, held_out.end) == (0, cut, cut, 100)


def test_corpus_is_written_once_and_then_only_read(tmp_path: Path) -> None:
    data, waits = make_run().data, []
    (first,) = open_texts(data, tmp_path / "data", True, lambda: waits.append(1))
    tokens = tmp_path / "data" / "stdlib_text" / "tokens.bin"
    written = tokens.stat().st_mtime_ns
    (second,) = open_texts(data, tmp_path / "data", False, lambda: waits.append(2))
    open_texts(data, tmp_path / "data", True, no_barrier)
    assert waits == [1, 2]
    assert tokens.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["stdlib_text"]
    assert isinstance(first.text.tokens.base, np.memmap)
    assert np.array_equal(first.text.tokens, second.text.tokens)
    assert first.text.tokens.tobytes()[::2] == b"".join(stdlib_documents())
    train, held_out = split_text(first.text, 0.05)
    assert 0.05 <= len(held_out) / len(first.text) < 0.1
    assert train.tokens[held_out.start - 1] == SEPARATOR[0]


def tokens_run(path: Path, tokens: list[int], dtype: str = "uint16", **overrides: object):
    np.array(tokens, dtype=np.dtype(dtype).newbyteorder("<")).tofile(path)
    data = {"name": "tokens", "kind": "tokens", "path": str(path), "dtype": dtype}
    return make_run(data=data, **overrides)


def open_(run: object, folder: Path, **sizes: int):
    return open_datasets(run, make_layout(**sizes), folder, True, no_barrier)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32"])
def test_token_files_of_any_type_give_their_ids(tmp_path: Path, dtype: str) -> None:
    run = tokens_run(tmp_path / "t.bin", list(range(200)), dtype)
    datasets = open_(run, tmp_path, sequence_length=8)
    (microbatch,) = datasets.train.step_samples(Progress(), make_layout(sequence_length=8), 0)
    assert torch.equal(microbatch.context.labels_BS, microbatch.tokens_BS + 1)
    assert datasets.validation is not None
    assert datasets.validation.samples.text.start == 190


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1] * 300 + [256] + [1] * 300,
         "model.vocab_size=256 [data-fits-vocabulary]: the data has the token id 256. "
         "Try model.vocab_size=257."),
        ([1] * 10,
         "train.sequence_length [data-long-enough]: the training text has 10 tokens, "
         "one sample needs 17.\n"
         "data.validation_fraction [data-long-enough]: the held-out text has 0 tokens, "
         "one sample needs 17."),
    ],
)  # fmt: skip
def test_unusable_tokens_are_refused(tmp_path: Path, tokens: list[int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_(tokens_run(tmp_path / "t.bin", tokens), tmp_path)
    assert str(caught.value) == message


def test_ids_beyond_the_first_look_are_refused_when_drawn() -> None:
    windows = TokenWindows(whole_text(np.full(100, 300, np.uint16), None), 16, 1)
    with pytest.raises(ConfigError, match="token id 300"):
        Batches(windows, vocab_size=256).step_samples(Progress(), make_layout(), 0)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    run = tokens_run(tmp_path / "t.bin", [1])
    (tmp_path / "t.bin").unlink()
    with pytest.raises(ConfigError, match=r"\[data-readable\]: no such file"):
        open_(run, tmp_path)


def test_nothing_is_held_out_without_validation(tmp_path: Path) -> None:
    run = tokens_run(tmp_path / "t.bin", [1] * 100, **{"data.validation_fraction": 0.0})
    assert open_(run, tmp_path).validation is None
