"""A schedule's file is read when the run is composed."""

import pytest

from launcher.config.schedule_lines import with_schedule_lines
from launcher.config.validate import validate_run
from tests.factory import make_run


def composed(schedule):
    return {"parallelism": {"schedule": schedule}}


def test_the_lines_of_a_file_travel_with_the_run(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("# mine\nF0,\tB0\n")
    values, findings = with_schedule_lines(composed(str(path)))
    assert findings == []
    assert values["parallelism"]["schedule_lines"] == ["# mine", "F0, B0"]
    again, _ = with_schedule_lines(values)
    assert again == values


@pytest.mark.parametrize("schedule", ["1f1b", None, 3, "unknown"])
def test_names_are_left_alone(schedule):
    assert with_schedule_lines(composed(schedule)) == (composed(schedule), [])
    assert with_schedule_lines({}) == ({}, [])


def test_lines_without_a_file_are_refused():
    values, (finding,) = with_schedule_lines(
        {"parallelism": {"schedule": "1f1b", "schedule_lines": ["F0, B0"]}}
    )
    assert finding.rule == "schedule-lines-from-a-file"
    assert values["parallelism"]["schedule_lines"] is None


@pytest.mark.parametrize("kind", ["missing", "folder", "bytes"])
def test_a_file_that_cannot_be_read_is_a_finding(kind, tmp_path):
    path = tmp_path / "mine.json"
    if kind == "folder":
        path.mkdir()
    if kind == "bytes":
        path.write_bytes(b"\xff\xfe\xfa")
    values, (finding,) = with_schedule_lines(composed(str(path)))
    assert finding.rule == "schedule-file-readable"
    assert values == composed(str(path))


@pytest.mark.parametrize("given", ["zbv", 5, None, ["1f1b"]])
def test_an_unknown_schedule_is_named_once_with_what_is_legal(given):
    values = make_run().model_dump(mode="python")
    values["parallelism"]["schedule"] = given
    run, (finding,) = validate_run(values)
    assert run is None
    assert (finding.field, finding.rule) == ("parallelism.schedule", "unknown-value")
    assert "zb_v" in finding.legal
    assert finding.fix == f"parallelism.schedule={'zb_v' if given == 'zbv' else '1f1b'}"
