"""Nodes are looked at before the training: a bad one is named and left out, and the job goes on."""

from __future__ import annotations

import json

from tests.cluster.runs import submit


def test_x(cluster, tmp_path):
    job = submit(cluster, tmp_path, "run", "train.steps=4", "launch.check_nodes=true")
    assert job.wait_for_end() == "COMPLETED", job.log
    print(job.log)
    start = job.starts[0].files
    for p in sorted(start.root.rglob("*")):
        if p.is_file() and p.suffix in (".json", ""):
            print(p, p.read_text())
    assert 0
