"""Are the small records of a job read for what they are, torn, missing or strange?"""

from __future__ import annotations

import json

import pytest

from launcher.node.history import bad_nodes_of, close_lost_starts, earlier_starts, past_of
from launcher.node.records import list_starts, read_record, write_record
from launcher.node.rendezvous import Endpoint, publish, published
from launcher.node.steps import trained_steps
from launcher.plan.run_files import RunFiles
from tests.node.places import SUBMITTED_AT, add_start, add_steps, make_place

TORN = ["", "{", '{"round": 1', "[1, 2]", "null", "\x00\x00", '"text"']


@pytest.fixture
def files(tmp_path) -> RunFiles:
    files = RunFiles(root=tmp_path)
    record = {"kind": "slurm", "job_id": "7", "submitted_at": SUBMITTED_AT}
    files.submitted.write_text(json.dumps(record))
    return files


@pytest.mark.parametrize("text", TORN)
def test_a_torn_record_is_no_record(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_record(path) is None
    assert published(path) is None


@pytest.mark.parametrize("record", [{}, {"host": "n1"}, {"host": "n1", "port": "x", "round": 1},
                                    {"host": "n1", "port": None, "round": 1}])  # fmt: skip
def test_a_place_to_meet_that_cannot_be_understood_is_waited_for(tmp_path, record):
    path = tmp_path / "x.json"
    write_record(path, record)
    assert published(path) is None


def test_what_is_published_is_read_whole(tmp_path):
    endpoint = Endpoint(host="n1", port=12345, round=2)
    publish(tmp_path / "x.json", endpoint)
    assert published(tmp_path / "x.json") == endpoint
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_record_that_cannot_be_written_leaves_the_old_one_and_no_other_file(
    tmp_path, monkeypatch
):
    path = tmp_path / "x.json"
    write_record(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_record(path, {"a": 2})
    assert read_record(path) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_starts_come_in_the_order_of_their_time_and_other_folders_are_none(files):
    add_start(files, restart=1)
    add_start(files, restart=0)
    add_start(files, job="12", restart=0, started_at=SUBMITTED_AT + 900)
    for name in ("notes", "7.x", ".5", "7."):
        (files.starts / name).mkdir()
    found = [(start.job_id, start.restart) for start in list_starts(files)]
    assert found == [("7", 0), ("7", 1), ("12", 0)]


def test_starts_without_a_time_come_last_by_their_numbers(files):
    for restart in (10, 9):
        (files.start("7", restart).root).mkdir(parents=True)
    add_start(files, restart=2)
    assert [start.restart for start in list_starts(files)] == [2, 9, 10]


# What counts of the past.


def test_starts_before_the_run_was_resumed_do_not_count(files):
    add_start(files, job="5", started_at=SUBMITTED_AT - 10)
    add_start(files, job="6", started_at=SUBMITTED_AT + 1)  # the job before, of follow-ups
    add_start(files, restart=0)
    found = earlier_starts(make_place(files, restart=1))
    assert [start.job_id for start in found] == ["6", "7"]


def test_every_start_of_this_job_counts_though_its_clock_or_its_record_be_wrong(files):
    add_start(files, restart=0, started_at=SUBMITTED_AT - 200)
    files.start("7", 1).root.mkdir(parents=True)
    (files.start("7", 1).nodes).write_text("{")
    found = earlier_starts(make_place(files, restart=2))
    assert [start.restart for start in found] == [0, 1]
    assert [past.first_step for past in past_of(found)] == [0, 0]


@pytest.mark.parametrize("text", TORN)
def test_a_torn_record_of_the_job_hides_no_start(files, text):
    files.submitted.write_text(text)
    add_start(files)
    assert len(earlier_starts(make_place(files, restart=1))) == 1


def test_nodes_found_bad_are_remembered_once_and_in_order(files):
    add_start(files, 0, end={"bad_nodes": ["n3", "n1"]})
    add_start(files, 1, end={})
    add_start(files, 2, end={"bad_nodes": ["n1", "n2"]})
    assert bad_nodes_of(list_starts(files)) == ["n3", "n1", "n2"]


@pytest.mark.parametrize(
    ("signal", "down", "reason"),
    [
        (None, (), "node_failure"),
        ("SIGTERM", (), "node_failure"),
        ("SIGUSR1", (), "preempted"),
        ("SIGUSR1", ("n2",), "node_failure"),  # the others were told to end
    ],
)
def test_a_start_without_an_end_lost_a_node_unless_the_queue_had_sent_a_notice(
    files, signal, down, reason
):
    folder = add_start(files, first_step=20)
    (folder / "agent_n1.json").write_text(json.dumps({"signal": signal}))
    (folder / "agent_n2.json").write_text("{")
    add_steps(files, 30)
    close_lost_starts(files, list_starts(files), lambda nodes: down)
    end = list_starts(files)[0].end
    assert (end["status"], end["reason"]) == ("requeued", reason)
    assert (end["first_step"], end["last_step"]) == (20, 30)
    assert end["lost_nodes"] == list(down)
    assert past_of(list_starts(files))[0].lost == down


def test_an_end_that_was_written_stays(files):
    add_start(files, end={"reason": "hang"})
    close_lost_starts(files, list_starts(files))
    assert list_starts(files)[0].end == {"reason": "hang"}


def test_steps_are_counted_past_torn_and_other_lines(files):
    add_steps(files, 5)
    with files.metrics.open("a") as stream:
        stream.write('{"step": 5, "saved": "x"}\n{"step": 5, "lo')
    assert trained_steps(files) == 5
