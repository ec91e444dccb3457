"""Nodes are looked at before the training: a bad one is named and left out, and the job goes on."""

from __future__ import annotations

from launcher.node.records import read_record
from tests.cluster.runs import ROOT, launch, submit

# Python runs it at its start. The clock of one node goes too fast, so that all takes longer there.
SLOW_NODE = """\
import socket, time
if socket.gethostname() == "n1":
    true = time.perf_counter
    time.perf_counter = lambda: 100.0 * true()
"""


def test_a_slow_node_is_named_and_left_out_and_the_job_finishes_elsewhere(cluster, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_NODE)
    hook = f"+launch.env.PYTHONPATH={tmp_path}:{ROOT}"
    checks = ("launch.check_nodes=true", "train.steps=3", "checkpoint.every_steps=3")
    job = submit(cluster, tmp_path, "run", *checks, hook)
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends == ["requeued: bad_node", "done: finished"], job.log
    first, second = job.starts
    assert first.nodes["nodes"] == ["n1", "n2"]
    bad, good = (read_record(first.files.check(node)) for node in ("n1", "n2"))
    assert [finding["what"] for finding in bad["findings"]] == ["slow"]
    assert good["ok"]
    assert first.end["bad_nodes"] == ["n1"]
    assert "n1: a matrix product takes" in first.end["why"]
    assert not list(first.files.root.glob("torchrun_*.log")), "nothing was built"
    assert second.nodes["nodes"] == ["n2", "n3"]
    assert "bad node n1 [slow]" in job.log
    assert "(bad: n1)" in launch(cluster, "status", str(job.files.root)).stdout
