"""Text in, token store out: every format, bad lines named, killed and continued."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from launcher.data import pieces
from launcher.data.command import main
from launcher.data.documents import Reading
from launcher.data.inputs import InputFile, find_inputs
from launcher.data.pieces import cut_tasks
from launcher.data.store import damaged_files, open_store
from launcher.data.tokenize import Job, Outcome, tokenize
from launcher.errors import ConfigError, RunFailed
from tests.data.test_store import documents_of

TEXTS = ["one", "zwei\n", "trois é", "四", "x" * 300]


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def make(tmp_path: Path, *inputs: Any, **options: Any) -> tuple[Outcome, list[str]]:
    """The outcome and the documents of the store as text."""
    outcome = tokenize(
        Job(inputs=tuple(map(str, inputs)), output=tmp_path / "out" / "store", **options)
    )
    _, text = open_store(outcome.store)
    documents = documents_of(text)
    assert all(document[-1] == 256 for document in documents)
    return outcome, [bytes(document[:-1]).decode() for document in documents]


def write_arrow(path: Path, texts: list[str], is_file: bool = False) -> None:
    table = pa.table({"id": range(len(texts)), "text": texts})
    new = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_saved(folder: Path, shards: list[list[str]]) -> None:
    """A folder as datasets.save_to_disk leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        write_arrow(folder / name, texts)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def write_parquet(path: Path, texts: list[Any]) -> None:
    pq.write_table(
        pa.table({"text": pa.array(texts), "n": range(len(texts))}), path, row_group_size=2
    )


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(jsonl(TEXTS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + jsonl(TEXTS) + b"\n \n"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(TEXTS))),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(jsonl(TEXTS))),
    "two_frames.jsonl.zst": lambda path: path.write_bytes(
        zstandard.compress(jsonl(TEXTS[:2])) + zstandard.compress(jsonl(TEXTS[2:]))
    ),
    "a.parquet": lambda path: write_parquet(path, TEXTS),
    "stream.arrow": lambda path: write_arrow(path, TEXTS),
    "file.arrow": lambda path: write_arrow(path, TEXTS, is_file=True),
    "saved": lambda path: write_saved(path, [TEXTS[:2], TEXTS[2:]]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    outcome, found = make(tmp_path, tmp_path / name)
    assert found == TEXTS
    assert outcome.info.bad_lines == 0
    assert damaged_files(outcome.store) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]


def test_splits_of_a_saved_data_set_follow_one_another(tmp_path: Path) -> None:
    write_saved(tmp_path / "d" / "train", [["a"], ["b"]])
    write_saved(tmp_path / "d" / "test", [["c"]])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert make(tmp_path, tmp_path / "d")[1] == ["a", "b", "c"]


def test_a_text_file_is_one_document_or_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"four\r\n"))
    (tmp_path / "empty.txt").write_text("")
    files = [tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "empty.txt"]
    assert make(tmp_path, *files)[1] == ["one\ntwo\n\nthree", "four\r\n"]
    lines = Reading(text_unit="line")
    assert make(tmp_path / "l", *files, reading=lines)[1] == ["one", "two", "three", "four"]


def test_folders_globs_and_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b/2.jsonl", "b/1.jsonl", "a.txt", ".hidden.txt", "b/x.bin", "c.parquet"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    folder = find_inputs(["in"])
    assert [(str(file.path), file.kind) for file in folder.files] == [
        ("in/a.txt", "text"), ("in/b/1.jsonl", "jsonl"), ("in/b/2.jsonl", "jsonl"),
        ("in/c.parquet", "parquet"),
    ]  # fmt: skip
    assert [str(path) for path in folder.skipped] == ["in/b/x.bin"]
    found = find_inputs(["in/**/*.jsonl", str(tmp_path / "in/b/1.jsonl"), "in/a.txt"])
    assert [str(file.path) for file in found.files] == ["in/b/1.jsonl", "in/b/2.jsonl", "in/a.txt"]
    assert find_inputs(["in/b/x.bin"], "jsonl").files == (InputFile(Path("in/b/x.bin"), "jsonl"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nothing"], "INPUT=nothing [input-readable]: no such file or folder."),
        (["*.xyz"], "INPUT=*.xyz [input-readable]: no file matches."),
        (["odd"], "1 files have no known suffix (x.bin)"),
        (["links"], "links/x.txt [input-readable]: No such file or directory."),
        (["torn"], "torn/data-0.arrow [input-readable]: No such file or directory."),
        (["nameless"], "nameless/state.json [input-readable]: not a data set"),
        (["listless"], "listless/state.json [input-readable]: not a data set"),
        (["splitless"], "splitless/train [input-readable]: No such file or directory."),
    ],
)
def test_inputs_that_are_not_there_are_named(tmp_path, monkeypatch, given, message) -> None:
    for name, file, text in [
        ("torn", "state.json", '{"_data_files": [{"filename": "data-0.arrow"}]}'),
        ("nameless", "state.json", '{"_data_files": [{"file": "data-0.arrow"}]}'),
        ("listless", "state.json", '{"_data_files": 3}'),
        ("splitless", "dataset_dict.json", '{"splits": ["train"]}'),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.txt").symlink_to("nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "x.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_inputs(given)
    assert message in str(caught.value)


# Bad lines


BAD_LINES = [
    (b"{broken", "no JSON"),
    (b'{"text": 3}', "'text' is int, not text"),
    (b'{"other": "x", "more": 1}', "no field 'text'; there are: other, more"),
    (b'["text"]', "not an object"),
    (b'{"text": "\xff"}', "no UTF-8"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    (b'{"text": null}', "'text' is NoneType, not text"),
    (b"[" * 100_000, "no JSON"),
]


def test_bad_lines_are_counted_and_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    lines = [line for bad, _ in BAD_LINES for line in (jsonl(["good"]).strip(), bad)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b'\n{"text": "torn')
    outcome, found = make(tmp_path, tmp_path / "a.jsonl")
    assert found == ["good"] * len(BAD_LINES)
    assert outcome.info.bad_lines == len(BAD_LINES) + 1
    for number, (_, reason) in enumerate(BAD_LINES):
        assert str(outcome.bad[number]).startswith(f"{tmp_path}/a.jsonl:{2 * number + 2}: ")
        assert reason in str(outcome.bad[number])


def test_strict_stops_at_the_first_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]) + b"no\n" + jsonl(["y"]))
    with pytest.raises(RunFailed, match=r"a.jsonl:2: no JSON .*\(--strict\)"):
        make(tmp_path, tmp_path / "a.jsonl", strict=True)
    assert not (tmp_path / "out" / "store").exists()
    assert make(tmp_path, tmp_path / "a.jsonl")[1] == ["x", "y"]


def test_lines_are_numbered_across_the_cuts_of_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pieces, "SMALLEST_TASK", 100)
    content = b"".join(jsonl([f"text {n}"]) if n % 7 else b"bad\n" for n in range(1, 200))
    (tmp_path / "a.jsonl").write_bytes(content)
    assert len(cut_tasks(find_inputs([str(tmp_path / "a.jsonl")]).files, False)) > 20
    outcome, found = make(tmp_path, tmp_path / "a.jsonl")
    assert found == [f"text {n}" for n in range(1, 200) if n % 7]
    assert [line.line for line in outcome.bad] == [n for n in range(1, 200) if n % 7 == 0]
    write_parquet(tmp_path / "b.parquet", ["a", None, "b", "c", None])
    outcome, found = make(tmp_path / "p", tmp_path / "b.parquet")
    assert (found, [line.line for line in outcome.bad]) == (["a", "b", "c"], [2, 5])


def test_a_torn_or_foreign_file_costs_only_itself(tmp_path: Path) -> None:
    many = [f"{n} " * 50 for n in range(3000)]
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(jsonl(many))[:-500])
    (tmp_path / "torn.jsonl.zst").write_bytes(zstandard.compress(jsonl(many))[:-500])
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain text")
    (tmp_path / "no.parquet").write_bytes(b"plain text")
    (tmp_path / "no.arrow").write_bytes(b"plain text")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    (tmp_path / "z.txt").write_bytes(b"good\nbad \xff\ngood\n")
    outcome, found = make(tmp_path, tmp_path)
    assert found[-1] == "good\ngood\n"
    named = {Path(line.path).name: line.reason for line in outcome.bad}
    assert set(named) == {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert "damaged from here on" in named["torn.jsonl.zst"]
    assert named["other.parquet"] == "no column 'text'; there are: body"


def test_nothing_but_bad_lines_is_a_failure_that_shows_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"], field="body"))
    with pytest.raises(RunFailed, match=r"(?s)not one document.*a.jsonl:1: no field 'text'"):
        make(tmp_path, tmp_path / "a.jsonl")
    assert make(tmp_path, tmp_path / "a.jsonl", reading=Reading(text_field="body"))[1] == ["x"]


# Tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-pair tokenizer with a template, a truncation and a hole in its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.enable_truncation(4)
    (tmp_path / "tok").mkdir()
    made.save(str(tmp_path / "tok" / "tokenizer.json"))
    return tmp_path / "tok"


def test_a_tokenizer_json_gives_its_own_ids_and_nothing_around_them(
    tmp_path: Path, tokenizer: Path
) -> None:
    from tokenizers import Tokenizer

    texts = ["the cat sat on the mat", "é ü"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    job = Job(inputs=(str(tmp_path / "a.jsonl"),), output=tmp_path / "s", tokenizer=str(tokenizer))
    info, text = open_store(tokenize(job).store)
    plain = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    plain.no_truncation()
    expected = [[*plain.encode(text, add_special_tokens=False).ids, 1] for text in texts]
    assert documents_of(text) == expected
    assert info.tokenizer.name == "tok"
    assert info.tokenizer.vocab_size == plain.get_vocab_size()
    copied = (tmp_path / "s" / "tokenizer.json").read_bytes()
    assert copied == (tokenizer / "tokenizer.json").read_bytes()


def test_tokenizers_that_cannot_be_used_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    for options, message in [
        ({"tokenizer": "nothing"}, r"--tokenizer=nothing \[tokenizer-readable\]: no such file"),
        ({"tokenizer": str(tmp_path / "bad.json")}, "not a tokenizer.json"),
        ({"tokenizer": str(tokenizer), "end_token": "<x>"},
         r"--end-token=<x> \[end-token-known\]: .* Legal here: </s>, <s>"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make(tmp_path, tmp_path / "a.jsonl", **options)


# Whole or not at all


def launch(*words: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", "tokenize", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, **pipes, **options)


def test_a_killed_command_goes_on_with_what_it_has_not_finished(tmp_path: Path) -> None:
    lines = jsonl([f"document {n} " + "word " * 20 for n in range(5000)])
    for name in "abcdefgh":  # 4.5 MB each, a task each
        (tmp_path / f"{name}.jsonl").write_bytes(lines * 7)
    words = (".", "-o", "store", "--workers", "1", "--format", "jsonl", "--json")
    inputs = [f"{name}.jsonl" for name in "abcdefgh"]
    words = (*inputs, *words[1:])
    process = launch(*words, cwd=tmp_path)
    first = tmp_path / ".store.tokenize" / "part_000001.json"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "store").exists()
    second = launch(*(word if word != "1" else "2" for word in words), cwd=tmp_path)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    outcome = json.loads(out)
    assert 2 <= outcome["kept_parts"] < 16
    assert outcome["num_documents"] == 8 * 7 * 5000
    assert damaged_files(tmp_path / "store") == []
    _, text = open_store(tmp_path / "store")
    assert np.array_equal(text.tokens[: len(text) // 8], text.tokens[-(len(text) // 8) :])
    assert not (tmp_path / ".store.tokenize").exists()


def test_another_job_does_not_take_over_the_parts_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]) + b"bad\n")
    with pytest.raises(RunFailed):
        make(tmp_path, tmp_path / "a.jsonl", strict=True)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["changed"]))
    outcome, found = make(tmp_path, tmp_path / "a.jsonl")
    assert (outcome.num_kept, found) == (0, ["changed"])


def test_a_damaged_part_is_made_again(tmp_path: Path, monkeypatch) -> None:
    import launcher.data.tokenize as module

    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "merge_parts", fail)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, tmp_path / "a.jsonl")
    part = tmp_path / "out" / ".store.tokenize" / "part_000000.tokens"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(RunFailed, match="1 parts of an earlier attempt were damaged"):
        make(tmp_path, tmp_path / "a.jsonl")
    assert make(tmp_path, tmp_path / "a.jsonl")[1] == TEXTS


def test_a_store_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    make(tmp_path, tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"\[output-free\]: it exists already"):
        make(tmp_path, tmp_path / "a.jsonl")


def test_a_store_takes_the_place_of_an_empty_current_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    tokenize(Job(inputs=(str(tmp_path / "a.jsonl"),), output=Path(".")))
    assert damaged_files(here) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_verdicts_on_stores_are_one_json_document(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    store = str(make(tmp_path, tmp_path / "a.jsonl")[0].store)
    assert main(["--verify", "--json", store, "nowhere"]) == 1
    assert json.loads(capsys.readouterr().out)["stores"] == [
        {"store": store, "reason": None}, {"store": "nowhere", "reason": "no such folder"},
    ]  # fmt: skip


def test_the_command_line_names_its_mistakes(tmp_path: Path) -> None:
    for words, message in [
        ((), "[tokenize-usage]: the following arguments are required: INPUT"),
        (("x",), "required: --output"),
        (("--verify",), "required: INPUT"),
        (("x", "-o", "s", "--workers", "0"), "it must be at least 1"),
        (("x", "-o", "s", "--zzz"), "--zzz [unknown-flag]: no such flag"),
    ]:
        process = launch(*words, cwd=tmp_path)
        _, err = process.communicate()
        assert process.returncode == 2
        assert message in err
        assert "Traceback" not in err
