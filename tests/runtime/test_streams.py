"""The token stream is a function of seed and consumed samples: whatever the layout, however often
the run was interrupted; mixtures keep their proportions; what is read does not pile up in memory.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.data_files import check_data_files
from launcher.config.load import load_run
from launcher.errors import ConfigError
from launcher.runtime.data import Datasets, open_datasets
from launcher.runtime.order import build_mixture
from launcher.runtime.progress import Progress
from tests.data.made import make_documents, make_megatron, make_store
from tests.factory import TINY, h100, make_run
from tests.runtime.stages import make_layout


def no_barrier() -> None:
    pass


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A store, a data set of Megatron-LM and a bare file, of very different sizes."""
    root = tmp_path_factory.mktemp("sources")
    make_store(root / "store", make_documents(400, seed=1))
    documents = [[document] for document in make_documents(90, seed=2)]
    make_megatron(root / "megatron", documents)
    return [
        {"kind": "store", "path": str(root / "store"), "weight": 0.7},
        {"kind": "megatron", "path": str(root / "megatron"), "weight": 0.3},
    ]


def open_mixture(sources: list[dict[str, Any]], packing: str = "documents") -> Datasets:
    data = {
        "name": "mixture", "kind": "mixture", "sources": sources, "packing": packing, "path": None,
        "validation_fraction": 0.1,
    }  # fmt: skip
    run = make_run(model=TINY | {"vocab_size": 257}, data=data)
    return open_datasets(run, make_layout(), Path("unused"), True, no_barrier)


# (dp, samples per microbatch, microbatches): the global batch is the product.
WAYS = [(1, 16, 1), (2, 8, 1), (4, 1, 4), (8, 2, 1), (8, 1, 2), (1, 1, 16)]


def stream(
    data: Datasets, progress: Progress, way: tuple[int, int, int], steps: int
) -> Iterator[tuple[bytes, Progress]]:
    """What every sample of some steps looks like, labels and documents with it."""
    dp, size, count = way
    layout = make_layout(dp=dp, micro_batch_size=size, num_microbatches=count)
    for _ in range(steps):
        for dp_index in range(dp):
            for microbatch in data.train.step_samples(progress, layout, dp_index):
                context = microbatch.context
                for row in range(size):
                    parts = (microbatch.tokens_BS, context.labels_BS, context.documents_BS)
                    yield b"".join(part[row].numpy().tobytes() for part in parts), progress
        progress = progress.after(layout.global_batch_size)


def samples_of(steps: Iterator[tuple[bytes, Progress]]) -> list[bytes]:
    return [sample for sample, _ in steps]


def digest(samples: list[bytes]) -> str:
    return hashlib.sha256(b"".join(samples)).hexdigest()


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_stream_is_the_same_in_every_layout(sources: Any, way: tuple[int, int, int]) -> None:
    alone = [sample for sample, _ in stream(open_mixture(sources), Progress(), WAYS[0], 12)]
    found = [sample for sample, _ in stream(open_mixture(sources), Progress(), way, 12)]
    assert digest(found) == digest(alone)
    assert len(set(alone)) > 150


def test_restarts_with_other_layouts_and_batches_go_on_with_the_next_sample(sources: Any) -> None:
    alone = samples_of(stream(open_mixture(sources), Progress(), WAYS[0], 20))
    progress, found = Progress(), []
    for (dp, size, count), steps in [
        ((1, 16, 1), 2), ((4, 1, 4), 1), ((8, 2, 1), 3), ((2, 3, 2), 4), ((8, 1, 1), 5),
        ((1, 5, 1), 3), ((4, 2, 3), 2),
    ]:  # fmt: skip
        # Every restart opens the data anew and knows nothing but its progress.
        for sample, _ in stream(open_mixture(sources), progress, (dp, size, count), steps):
            found.append(sample)
        for _ in range(steps):
            progress = progress.after(dp * size * count)
    assert progress.consumed_samples == len(found) == 247
    assert digest(found) == digest(alone[:247])


def test_read_ahead_samples_are_the_ones_that_are_asked_for(sources: Any) -> None:
    data, fresh = open_mixture(sources), open_mixture(sources)
    layout = make_layout(dp=2)
    for consumed in (0, 4, 8, 100, 4, 8):  # in order, then somewhere else
        place = Progress(step=consumed // 4, consumed_samples=consumed)
        for dp_index in (1, 1, 0):
            (read,) = data.train.step_samples(place, layout, dp_index)
            fresh.train._coming = None
            (expected,) = fresh.train.step_samples(place, layout, dp_index)
            assert read.tokens_BS.equal(expected.tokens_BS)
            assert read.context.num_labels == expected.context.num_labels


WEIGHTS = st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(WEIGHTS)
def test_every_prefix_of_a_mixture_has_its_proportions(weights: list[float]) -> None:
    samples, tree = np.arange(3000), build_mixture(weights)
    if isinstance(tree, int):
        return
    dealt, places = tree.deal(samples)
    for number, weight in enumerate(weights):
        is_here = dealt == number
        # The samples of a source are its own 0, 1, 2, ...
        assert np.array_equal(places[is_here], np.arange(is_here.sum()))
        due = (samples + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(is_here) - due).max() <= 1.51


def test_far_samples_of_a_mixture_need_no_walk_from_the_start() -> None:
    tree = build_mixture([0.7, 0.2, 0.1])
    far = 10**13
    dealt, places = tree.deal(np.arange(far, far + 1000))
    assert np.bincount(dealt).tolist() == [700, 200, 100]
    assert abs(int(places[dealt == 0][0]) - 7 * far // 10) <= 2


def test_held_out_documents_are_in_no_training_sample(sources: Any) -> None:
    data = open_mixture(sources, packing="concatenate")
    for source, held_out in zip(
        data.train.samples.sources, data.validation.samples.sources, strict=True
    ):
        assert source.text.end == held_out.text.start
        assert source.text.tokens[source.text.end - 1] == 256, "cut between documents"
        assert 0.1 <= len(held_out.text) / len(source.text.tokens) < 0.2


# At plan time


def test_a_store_of_another_vocabulary_is_refused_before_anything_starts(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_documents(5), vocab_size=300)
    with pytest.raises(ConfigError) as caught:
        load_run(["recipe=null", "model=tiny", "data=store", f"data.path={store}"])
    assert str(caught.value) == (
        "model.vocab_size=256 [data-fits-vocabulary]: the token store was made with a tokenizer "
        "of 300 ids. Try model.vocab_size=300."
    )


def test_data_that_should_be_here_and_is_not_is_refused(tmp_path: Path, sources: Any) -> None:
    absent = [
        {"kind": kind, "path": str(tmp_path / "none")} for kind in ("store", "megatron", "tokens")
    ]
    run = make_run(data={"kind": "mixture", "sources": absent})
    assert [(f.field, f.reason) for f in check_data_files(run)] == [
        ("data.sources.0.path", "no such folder"),
        ("data.sources.1.path", "none.idx: No such file or directory"),
        ("data.sources.2.path", "no such file"),
    ]
    elsewhere = make_run(hardware=h100(1), data={"kind": "mixture", "sources": absent})
    assert check_data_files(elsewhere) == []


def test_paths_of_data_mean_the_same_in_every_directory(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        np.arange(100, dtype="<u2").tofile(tmp_path / f"{name}.bin")
    monkeypatch.chdir(tmp_path)
    job = ["recipe=null", "model=tiny"]
    assert load_run([*job, "data=tokens", "data.path=a.bin"]).run.data.path == f"{tmp_path}/a.bin"
    source = "{kind: tokens, path: ./b.bin, weight: 1}"
    mixed = load_run([*job, "data=mixture", f"data.sources=[{source}]"]).run
    assert [source.path for source in mixed.data.sources] == [f"{tmp_path}/b.bin"]


def test_stores_of_different_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    stores = [
        {"kind": "store", "path": str(make_store(tmp_path / sha, make_documents(5), sha=sha))}
        for sha in ("one", "two")
    ]
    run = make_run(model=TINY | {"vocab_size": 257}, data={"kind": "mixture", "sources": stores})
    (finding,) = check_data_files(run)
    assert finding.rule == "mixture-one-tokenizer"


# Memory


RESIDENT = """
import json, sys
import numpy as np
from pathlib import Path
from launcher.data.store import open_store
from launcher.runtime.windows import TokenWindows

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

_, text = open_store(Path(sys.argv[1]))
windows = TokenWindows(text, 2048, 1, has_documents=True)
before, peak = resident(), 0
for first in range(0, windows.per_epoch, 64):
    windows.read(np.arange(first, first + 64))
    peak = max(peak, resident())
print(json.dumps([before, peak, len(text) * 2]))
"""


def test_resident_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    """All of a 200 MB store is read; pages of a map would count as resident."""
    store = make_store(tmp_path / "s", make_documents(2))
    document = json.loads((store / "store.json").read_text())
    count, length = 100_000, 1000
    with (store / "tokens.bin").open("wb") as stream:
        stream.truncate(count * length * 2)
    np.arange(0, (count + 1) * length, length, dtype="<u8").tofile(store / "documents.idx")
    document |= {"num_tokens": count * length, "num_documents": count}
    (store / "store.json").write_text(json.dumps(document))
    found = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(store)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    before, peak, size = json.loads(found.stdout)
    assert size == 2e8
    assert peak - before < 1.0e8  # 64 MiB between two forgettings, and what lookups touch
