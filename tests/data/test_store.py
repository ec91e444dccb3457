"""Token stores and Megatron-LM's files: read as written, refused when they are not whole."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from launcher.data.megatron import open_megatron
from launcher.data.store import damaged_files, narrowest_dtype, open_store
from launcher.data.store_info import Unreadable
from launcher.data.text import Text, split_text, whole_text
from tests.data.made import make_documents, make_megatron, make_store

DOCUMENTS = make_documents(50)


def documents_of(text: Text) -> list[list[int]]:
    borders = text.borders[:]
    return [text.tokens[a:b].tolist() for a, b in pairwise(borders)]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (70_000, "uint32")])
def test_a_store_gives_back_its_documents(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    info, text = open_store(make_store(tmp_path / "s", DOCUMENTS, vocab_size))
    assert documents_of(text) == DOCUMENTS
    assert (info.dtype, info.num_documents, info.largest_token) == (dtype, 50, 256)
    assert info.num_tokens == len(text) == sum(map(len, DOCUMENTS))
    assert narrowest_dtype(vocab_size) == dtype
    assert damaged_files(tmp_path / "s") == []


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", DOCUMENTS)
    content = bytearray((store / "tokens.bin").read_bytes())
    content[77] ^= 1
    (store / "tokens.bin").write_bytes(content)
    assert damaged_files(store) == ["tokens.bin"]


def cut_tokens(store: Path) -> None:
    (store / "tokens.bin").write_bytes((store / "tokens.bin").read_bytes()[:-2])


def drop_borders(store: Path) -> None:
    (store / "documents.idx").unlink()


def spoil_json(store: Path) -> None:
    (store / "store.json").write_text("{")


def other_version(store: Path) -> None:
    document = json.loads((store / "store.json").read_text()) | {"version": 2}
    (store / "store.json").write_text(json.dumps(document))


def other_fields(store: Path) -> None:
    (store / "store.json").write_text('{"format": "launch-token-store", "version": 1}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_tokens, r"tokens.bin has \d+ bytes where store.json says \d+"),
        (drop_borders, r"documents.idx is absent where store.json says \d+"),
        (spoil_json, "store.json cannot be read"),
        (other_version, "not of format launch-token-store, version 1"),
        (other_fields, "other fields than a token store"),
        (lambda store: (store / "store.json").unlink(), "`launch tokenize` makes token stores"),
    ],
)
def test_a_store_that_is_not_whole_is_refused(tmp_path: Path, damage, message: str) -> None:
    store = make_store(tmp_path / "s", DOCUMENTS)
    damage(store)
    with pytest.raises(Unreadable, match=message):
        open_store(store)


CODES = [("uint8", 1), ("int16", 3), ("int32", 4), ("int64", 5), ("uint16", 8)]


@pytest.mark.parametrize(("dtype", "code"), CODES)
def test_megatron_files_are_read_as_they_are(tmp_path: Path, dtype: str, code: int) -> None:
    documents = [[[1, 2, 3], [4]], [[5, 6]], [], [[7], [8, 9], [10]]]
    prefix = make_megatron(tmp_path / "corpus", documents, dtype, code)
    text = open_megatron(str(prefix))
    assert documents_of(text) == [[1, 2, 3, 4], [5, 6], [], [7, 8, 9, 10]]
    assert [text.borders[index] for index in range(5)] == [0, 4, 6, 6, 10]
    assert text.borders_between(0, 10).tolist() == [4, 6]
    assert text.tokens.dtype == np.dtype(dtype)
    for typed in (f"{prefix}.bin", f"{prefix}.idx"):
        assert documents_of(open_megatron(typed)) == documents_of(text)


def test_a_megatron_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    prefix = str(make_megatron(tmp_path / "corpus", [[[1, 2, 3]], [[4]]]))
    whole = {end: Path(prefix + end).read_bytes() for end in (".idx", ".bin")}
    cases = {
        ".idx": [
            (whole[".idx"][:-8], "ends before its last entry"),
            (whole[".idx"][:20], "does not start as an index"),
            (b"MMIDIDX\0\1" + whole[".idx"][9:], "does not start as an index"),
            (whole[".idx"][:9] + b"\2" + whole[".idx"][10:], "version 2, only 1 is known"),
            (whole[".idx"][:17] + b"\6" + whole[".idx"][18:], "type code 6"),
        ],
        ".bin": [(whole[".bin"][:-2], "describes bytes 0 to 8 of a .bin file that has 6")],
    }
    for end, spoilt in cases.items():
        for content, message in spoilt:
            Path(prefix + end).write_bytes(content)
            with pytest.raises(Unreadable, match=message):
                open_megatron(prefix)
        Path(prefix + end).write_bytes(whole[end])
    Path(prefix + ".bin").unlink()
    with pytest.raises(Unreadable, match=r"corpus.bin is absent"):
        open_megatron(prefix)


def test_held_out_documents_are_whole_and_last(tmp_path: Path) -> None:
    text = whole_text(np.arange(60), np.array([0, 10, 10, 30, 55, 60]))
    for share, cut in {0.0: 60, 0.01: 55, 0.09: 30, 0.5: 30, 0.51: 10, 0.9: 0}.items():
        train, held_out = split_text(text, share)
        assert (train.end, held_out.start) == (cut, cut), share
    _, held_out = split_text(text, 0.5)
    assert held_out.borders_between(0, 30).tolist() == [25]
