"""Files of `launch plan`: written whole, never over something that is not a plan's."""

from __future__ import annotations

import json
import os

import pytest

from launcher.errors import ConfigError
from launcher.plan.build import build_plan
from launcher.submit.plan_files import check_files, plan_files, write_files
from tests.factory import make_run
from tests.test_cli import launch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_both_files_are_written_and_named(tmp_path):
    code, out, err = launch("plan", "--html", "a page.html", "--trace=plan.trace.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [
        f"written     {tmp_path / 'a page.html'}",
        f"written     {tmp_path / 'plan.trace.json'}",
    ]
    assert (tmp_path / "a page.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "plan.trace.json").read_text())["traceEvents"]
    assert sorted(os.listdir()) == ["a page.html", "plan.trace.json"]


def test_with_json_the_document_stays_alone_on_stdout(tmp_path):
    code, out, err = launch("plan", "--json", "--html", "x.html")
    assert code == 0
    assert json.loads(out)["layout"]
    assert err == f"written     {tmp_path / 'x.html'}\n"


def test_what_does_not_fit_has_a_page_too():
    code, _, _ = launch("plan", "model=gpt_1t", "hardware=h100x8", "--html", "x.html")
    assert code == 3
    assert os.path.exists("x.html")


def test_a_mistake_in_the_configuration_writes_nothing():
    code, _, _ = launch("plan", "train.stps=1", "--html", "x.html", "--trace", "x.json")
    assert code == 2
    assert os.listdir() == []


def test_a_page_of_an_earlier_plan_is_replaced(tmp_path):
    for model in ("gpt2_124m", "tiny"):
        assert launch("plan", f"model={model}", "--html=x.html", "--trace=x.json")[0] == 0
    assert "<h1>tiny" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize("flag", ["--html", "--trace"])
@pytest.mark.parametrize(
    ("path", "finding"),
    [
        ("train.py", "train.py [file-exists]: it is there, and no `launch plan {flag}` wrote it. "
                     "Try another name."),
        ("folder", "folder [file-exists]: it is there, and it is not a file."),
        ("/dev/null", "/dev/null [file-exists]: it is there, and it is not a file."),
        ("no/x", "no/x [no-such-directory]: {here}/no is not a folder."),
        ("train.py/x", "train.py/x [no-such-directory]: {here}/train.py is not a folder."),
        ("", " [no-such-directory]: the name of the file is empty."),
        ("x" * 300, "x" * 300 + " [file-not-writable]: File name too long."),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_written_is_named(tmp_path, flag, path, finding):
    (tmp_path / "train.py").write_text("precious")
    (tmp_path / "folder").mkdir()
    code, out, err = launch("plan", f"{flag}={path}")
    assert (code, out) == (2, "")
    assert err == f"{flag}={finding.format(flag=flag, here=tmp_path)}\n"
    assert (tmp_path / "train.py").read_text() == "precious"
    assert sorted(os.listdir()) == ["folder", "train.py"]


def test_all_mistakes_are_named_at_once(tmp_path):
    code, _, err = launch("plan", "--html=no/x", "--trace=no/y", "train.stps=1")
    assert code == 2
    assert [line.split(" ")[0] for line in err.splitlines()] == [
        "--html=no/x", "--trace=no/y", "train.stps"
    ]  # fmt: skip


def test_two_flags_want_two_files():
    code, _, err = launch("plan", "--html=x", "--trace=./x")
    assert code == 2
    assert err == "--trace=./x [one-plan-per-file]: --html names the same file.\n"


def test_a_sweep_has_more_plans_than_a_file_holds():
    code, _, err = launch("plan", "-m", "train.seed=1,2", "--html=x")
    assert code == 2
    assert err.startswith("--html=x [one-plan-per-file]: a sweep of 2 has as many plans")
    assert os.listdir() == []


@pytest.mark.parametrize("verb", ["run", "verify", "rules"])
def test_only_plan_writes_them(verb):
    code, _, err = launch(verb, "--html=x", "--trace=y")
    assert code == 2
    assert err.count("[unused-flag]") == 2


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "shared").mkdir()
    os.symlink("shared/real.html", "link.html")
    assert launch("plan", "--html=link.html")[0] == 0
    assert os.path.islink("link.html")
    assert (tmp_path / "shared" / "real.html").is_file()


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        assert launch("plan", "--html=x.html")[0] == 0
    finally:
        os.umask(before)
    assert (tmp_path / "x.html").stat().st_mode & 0o777 == 0o640


def test_a_disk_that_says_no_at_the_end_leaves_the_old_page(tmp_path, monkeypatch):
    assert launch("plan", "--html=x.html")[0] == 0
    old = (tmp_path / "x.html").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    files = plan_files("x.html", None)
    assert check_files(files, 1) == []
    monkeypatch.setattr("launcher.submit.plan_files.os.replace", full)
    with pytest.raises(ConfigError, match=r"file-not-writable.*No space left"):
        write_files(files, build_plan(make_run()))
    assert (tmp_path / "x.html").read_bytes() == old
    assert os.listdir() == ["x.html"]
