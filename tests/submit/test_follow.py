"""Is a run shown as it goes, with half-written lines left for later?"""

from __future__ import annotations

import io
import json
from pathlib import Path

from launcher.submit.follow import MetricsTail, Progress, describe


def entry(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-3,
            "step_s": 0.1, "tokens_per_s": 1234.5, **more}  # fmt: skip


def test_a_missing_file_has_no_entries(tmp_path):
    assert MetricsTail(tmp_path / "metrics.jsonl").new_entries() == []


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    first, second = (json.dumps(entry(step)) for step in (0, 1))
    path.write_text(first + "\n" + second[:20])
    assert [line["step"] for line in tail.new_entries()] == [0]
    assert tail.new_entries() == []
    with path.open("a") as stream:
        stream.write(second[20:])
    assert tail.new_entries() == [], "without its end a line may still grow"
    with path.open("a") as stream:
        stream.write("\n" + json.dumps(entry(2)) + "\n")
    assert [line["step"] for line in tail.new_entries()] == [1, 2]
    assert tail.new_entries() == []


def test_a_line_cut_inside_a_letter_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    line = json.dumps({"note": "é"}, ensure_ascii=False).encode() + b"\n"
    cut = line.index("é".encode()) + 1
    path.write_bytes(line[:cut])
    assert tail.new_entries() == []
    path.write_bytes(line)
    assert tail.new_entries() == [{"note": "é"}]


def test_every_entry_is_read_once_whatever_the_pieces(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps(entry(step)) + "\n" for step in range(20))
    for size in (1, 7, 64, len(text)):
        path.unlink(missing_ok=True)
        tail, seen = MetricsTail(path), []
        for start in range(0, len(text), size):
            with path.open("a") as stream:
                stream.write(text[start : start + size])
            seen += tail.new_entries()
        assert [line["step"] for line in seen] == list(range(20))


def shown(steps: int) -> list[str]:
    stream = io.StringIO()
    progress = Progress(steps, stream)
    for step in range(steps):
        progress.update([entry(step)])
    progress.close()
    return stream.getvalue().splitlines()


def test_some_twenty_lines_without_a_terminal_with_the_first_and_the_last():
    lines = shown(1000)
    assert 20 <= len(lines) <= 23
    assert lines[0].startswith("step    1/1000  loss 2.5000  grad norm 0.500  lr 1.00e-03")
    assert lines[-1].startswith("step 1000/1000")
    assert lines[0].endswith("ETA -")
    assert lines[-1].endswith("ETA 0:00")


def test_a_short_run_shows_every_step():
    assert len(shown(3)) == 3


def test_entries_without_a_loss_are_passed_over():
    stream = io.StringIO()
    Progress(10, stream).update([{"event": "start"}])
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_all_figures(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(10, stream)
    progress.update([entry(4)])
    progress.close()
    text = stream.getvalue()
    assert "5/10" in text
    assert "loss 2.5000" in text
    assert "ETA" in text


def test_validation_is_shown_where_it_was_measured():
    assert describe(entry(0, validation_loss=2.75)).endswith("validation 2.7500")
    assert "validation" not in describe(entry(0))


def test_the_tail_takes_any_path(tmp_path):
    assert MetricsTail(Path(tmp_path / "a\nb")).new_entries() == []


def test_a_checkpoint_that_was_not_written_is_said():
    stream = io.StringIO()
    Progress(100, stream).update([{"step": 9, "checkpoint_error": "No space left on device"}])
    assert stream.getvalue() == (
        "the checkpoint after step 10 was not written: No space left on device; training goes on\n"
    )
