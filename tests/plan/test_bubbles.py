"""Bubbles of all schedules, against those that the zero-bubble paper measured from its profiles."""

import csv
from pathlib import Path

import pytest

from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.simulate import StageTimes, simulate

LINES = (Path(__file__).parent / "bubbles.csv").read_text().splitlines()
ROWS = list(csv.DictReader(line for line in LINES if not line.startswith("#")))
EXACT = ("1f1b", "zb_h1", "zb_h2", "zb_1p")
CHUNKS = {"interleaved_1f1b": 3}
"""24 layers on 8 stages and 48 on 16, one layer per chunk (two layers make room for the ends)."""


def bubble(row):
    p, m, name = int(row["stages"]), int(row["micro_batches"]), row["schedule"]
    f, b, w, c = (float(row[key]) for key in ("TF_ms", "TB_ms", "TW_ms", "Tcomm_ms"))
    v, splits = CHUNKS.get(name, 1), SCHEDULES[name].splits_backward
    one = StageTimes(
        forward_s=f / v, backward_s=(b if splits else b + w) / v, weight_s=w / v if splits else 0.0
    )
    schedule = build_schedule(
        name, p, m, v, times=[one] * (p * v), p2p_s=c, weight_share=float(row["weight_share"])
    )
    return simulate(schedule, [one] * (p * v), c).unsynchronised_bubble_fraction


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['schedule']}-p{row['stages']}-m{row['micro_batches']}"
)
def test_bubble_is_the_published_one(row):
    tolerance = 0.000_051 if row["schedule"] in EXACT else 0.005
    assert bubble(row) == pytest.approx(float(row["bubble_rate"]), abs=tolerance)


def test_all_six_schedules_of_all_six_profiles_are_compared():
    assert len(ROWS) == 36
    assert len({row["schedule"] for row in ROWS}) == 6
