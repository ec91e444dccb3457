"""Do the nodes of a job come to one verdict, and is a node named that says nothing?"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from launcher.node.checks import together
from launcher.node.checks.report import RankReport
from launcher.node.checks.together import NodeCheck, wait_to_see
from launcher.node.place import Place
from launcher.node.records import read_record, write_record
from launcher.plan.run_files import RunFiles

LAYOUT = SimpleNamespace(nodes=2, gpus_per_node=1, world_size=2)


class Fake:
    """Processes of a node that have done what the test says."""

    said: ClassVar[dict[int, RankReport]] = {}

    def __init__(self, place: Place, *rest: object) -> None:
        self._rank = place.index

    def look(self) -> tuple[tuple[RankReport, ...], bool]:
        return (self.said[self._rank],), False

    def end(self) -> None: ...


@pytest.fixture
def said(monkeypatch) -> dict[int, RankReport]:
    monkeypatch.setattr(together, "CheckProcesses", Fake)
    good = {
        rank: RankReport(rank=rank, stage="all_reduce", product_s=0.001, all_reduce_s=0.1)
        for rank in range(2)
    }
    monkeypatch.setattr(Fake, "said", good)
    return good


def place(folder: Path, index: int) -> Place:
    made = Place(
        files=RunFiles(root=folder), job_id="7", restart=0, node=f"n{index + 1}", index=index,
        nodelist="n[1-2]",
    )  # fmt: skip
    made.start.root.mkdir(parents=True, exist_ok=True)
    write_record(made.start.nodes, {"nodes": ["n1", "n2"]})
    return made


def check(where: Place, timeout_s: float = 60.0, is_asked: bool = False) -> NodeCheck:
    launch = SimpleNamespace(check_timeout_s=timeout_s)
    run = SimpleNamespace(hardware=SimpleNamespace(device="cpu"), launch=launch)
    return NodeCheck(where, run, LAYOUT, lambda: is_asked)


def both(folder: Path) -> list[bool]:
    """Verdicts of the two nodes, which run at once."""
    verdicts: dict[int, bool] = {}
    nodes = [check(place(folder, index)) for index in range(2)]

    def take_part(index: int) -> None:
        verdicts[index] = nodes[index].passes()

    threads = [threading.Thread(target=take_part, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [verdicts[0], verdicts[1]]


def test_healthy_nodes_go_on_and_their_measures_are_kept(tmp_path, said, capsys):
    assert both(tmp_path) == [True, True]
    record = read_record(place(tmp_path, 1).start.check("n2"))
    assert record["ok"]
    assert record["product_s"] == [0.001]
    assert "checks of 2 nodes took" in capsys.readouterr().out


def test_a_bad_node_keeps_all_nodes_from_training(tmp_path, said, capsys):
    said[1] = RankReport(rank=1, error="no device")
    assert both(tmp_path) == [False, False]
    start = place(tmp_path, 0).start
    assert read_record(start.check("n1"))["ok"]
    (finding,) = read_record(start.check("n2"))["findings"]
    assert (finding["what"], finding["value"]) == ("device", "rank 1: no device")
    assert set(finding) == {"what", "value", "reason", "fix"}
    assert "bad node n2 [device]: rank 1: no device." in capsys.readouterr().out


def test_a_node_that_never_answers_is_named_when_the_time_is_over(tmp_path, said):
    said[0] = RankReport(rank=0, stage="product", product_s=0.001)
    assert not check(place(tmp_path, 0), timeout_s=0.5).passes()
    (finding,) = read_record(place(tmp_path, 0).start.check("n2"))["findings"]
    assert finding["what"] == "no_answer"


def test_nodes_that_wait_for_each_other_in_vain_do_not_train_and_none_is_named(tmp_path, said):
    for rank in range(2):
        said[rank] = RankReport(rank=rank, stage="met", product_s=0.001)
    late = threading.Thread(target=check(place(tmp_path, 1), timeout_s=2.0).passes)
    late.start()
    start = place(tmp_path, 0).start
    assert not check(place(tmp_path, 0), timeout_s=2.0).passes()
    late.join(60)
    assert read_record(start.check("n1"))["ok"]
    assert "in vain" in read_record(start.check_verdict)["why"]


def test_a_job_that_is_asked_to_end_is_not_held_up(tmp_path, said):
    said[0] = RankReport(rank=0)
    assert check(place(tmp_path, 0), is_asked=True).passes()


def test_a_node_that_does_not_see_the_run_directory_says_so_and_ends(tmp_path, capsys):
    blind = Place(
        files=RunFiles(root=tmp_path / "elsewhere"), job_id="7", restart=0, node="n2", index=1,
        nodelist="n[1-2]",
    )  # fmt: skip
    assert not wait_to_see(blind, patience_s=0.0)
    assert "file system that all nodes share" in capsys.readouterr().err


def test_a_node_that_cannot_write_says_so_and_does_not_train(tmp_path, said, capsys, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(together, "write_record", refuse)
    monkeypatch.setattr(together, "_LAST_WORD_S", 0.0)
    assert not check(place(tmp_path, 1), timeout_s=0.1).passes()
    assert "Read-only file system" in capsys.readouterr().err
