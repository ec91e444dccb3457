"""Is the test cluster what the other tests take it for?"""

from __future__ import annotations

from pathlib import Path

from tests.cluster.slurm import Cluster, wait_until


def script(folder: Path, text: str, *options: str) -> Path:
    path = folder / "job.sbatch"
    lines = [f"#SBATCH --output={folder}/out --open-mode=append --job-name=x", *options]
    path.write_text("\n".join(["#!/bin/bash", *lines, text, ""]))
    return path


def test_nodes_have_names_addresses_and_loopbacks_of_their_own(cluster, tmp_path):
    text = "srun bash -c 'hostname; hostname -i; ls /sys/class/net; echo $CUDA_VISIBLE_DEVICES'"
    options = ("#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=2",)
    job = cluster.submit(script(tmp_path, text, *options))
    assert cluster.wait_for(job, ["COMPLETED", "FAILED"]) == "COMPLETED"
    said = (tmp_path / "out").read_text().split()
    assert {"n1", "n2", "eth0", "0,1"} <= set(said)
    assert len({word for word in said if word.startswith("10.77.")}) == 2


def test_a_killed_node_is_down_and_its_job_starts_again_elsewhere(cluster, tmp_path):
    text = "echo start ${SLURM_RESTART_COUNT:-0} $(hostname); [ $SLURM_RESTART_COUNT ] || sleep 100"
    job = cluster.submit(script(tmp_path, text))
    cluster.wait_for(job, ["RUNNING"])
    wait_until(lambda: "start" in _read(tmp_path / "out"), 10, "the job speaks")
    (node,) = cluster.job_nodes(job)
    cluster.kill_node(node)
    assert cluster.wait_for(job, ["COMPLETED"], 90) == "COMPLETED"
    first, second = [line for line in _read(tmp_path / "out").splitlines() if "start" in line]
    assert first == f"start 0 {node}"
    assert second.startswith("start 1 n")
    assert second != f"start 1 {node}"


def test_two_clusters_live_beside_each_other(cluster, tmp_path):
    other = Cluster(num_nodes=1)
    try:
        other.start()
        job = other.submit(script(tmp_path, "hostname -i"))
        other.wait_for(job, ["COMPLETED"])
    finally:
        other.stop()
    assert not other.base.exists()
    assert len(cluster.idle_nodes()) == cluster.num_nodes


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
