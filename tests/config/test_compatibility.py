"""The table of what goes together is the rules' own answer."""

import pytest

from launcher.config.compatibility import CUTS, OTHERS, broken_rules, render_compatibility

CUT = {cut.label: cut for cut in CUTS}
OTHER = {other.label: other for other in OTHERS}


def test_every_way_of_cutting_is_legal_by_itself():
    assert {cut.label: broken_rules(cut) for cut in CUTS} == {cut.label: () for cut in CUTS}


@pytest.mark.parametrize(
    ("cut", "other", "broken"),
    [
        ("schedule=zb_v", "engine=fsdp2", ("fsdp2-without-split-backward",)),
        ("schedule=1f1b", "engine=fsdp2", ()),
        ("schedule=mine.csv", "engine=fsdp2", ()),
        ("schedule=mine.csv", "compile=true", ()),
        ("schedule=mine.csv, with W", "engine=fsdp2", ("fsdp2-without-split-backward",)),
        ("schedule=dualpipev", "compile=true", ("split-backward-without-compile",)),
        ("schedule=gpipe", "zero_stage=3", ("zero3-without-pipeline",)),
        ("cp_mode=ring", "attention_dropout=0.1", ("attention-dropout-needs-ulysses",)),
        ("cp_mode=ulysses", "attention_dropout=0.1", ()),
        ("sequence_parallel=true", "packed documents", ()),
    ],
)
def test_a_pair_is_judged_by_the_rules(cut, other, broken):
    assert broken_rules(CUT[cut], OTHER[other]) == broken


def test_a_refused_pair_names_its_rule():
    table = render_compatibility()
    assert all(f"| {cut.label} |" in table for cut in CUTS)
    (row,) = [line for line in table.splitlines() if line.startswith("| schedule=zb_h1 |")]
    cell = row.strip("| ").split(" | ")[1 + list(OTHER).index("engine=fsdp2")]
    number = cell.removeprefix("no: ")
    assert f"{number}. `fsdp2-without-split-backward`" in table
