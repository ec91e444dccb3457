"""Submission to a real Slurm: one file for a site, hostile names, and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.config.quoting import hydra_text
from tests.cluster.runs import launch

HOSTILE = ["a b", 'a"b', "a';touch PWNED;'", "$(touch PWNED)", "%j %% x", "é 日本", "--wrap=x"]
# In the place of Python on the nodes: it writes down how it was called.
RECORDER = """\
#!/bin/sh
{ printf '%s\\037' "$@"; echo; } >> "$(dirname "$0")/calls.$SLURM_JOB_ID"
"""
SITE = """\
name: slurm
partition: {partition}
account: {account}
time_limit: {time_limit}
exclusive: false
"""
ONE = ("recipe=quickstart", "hardware.device=cpu")


@pytest.fixture
def site(cluster, tmp_path, monkeypatch) -> Path:
    """A folder with a site's own file, on a machine from which jobs are submitted."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path, partition="main", account='"007"', time_limit='"1:00:00"')
    return tmp_path


def write_site(folder: Path, **values: str) -> None:
    (folder / "site" / "launch").mkdir(parents=True, exist_ok=True)
    (folder / "site" / "launch" / "mysite.yaml").write_text(SITE.format(**values))


def run(cluster, site: Path, *words: str):
    return launch(cluster, "run", "--config-dir", str(site / "site"), "launch=mysite", *words)


def test_hostile_names_are_data_to_a_real_slurm(cluster, site):
    recorder = site / "programs" / "python"
    recorder.parent.mkdir()
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    jobs = {}
    for text in HOSTILE:
        root = site / "runs" / text
        name = f"launch.job_name={hydra_text(text)}"
        done = run(cluster, site, "--run-dir", str(root), f"launch.python={recorder}", name, *ONE)
        assert done.returncode == 0, done.stderr
        jobs[text] = json.loads((root / "job.json").read_text())["job_id"]
    for text, job_id in jobs.items():
        root = site / "runs" / text
        assert cluster.wait_for(job_id, ["COMPLETED", "FAILED"]) == "COMPLETED"
        shown = cluster.slurm("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%j").rstrip("\n")
        assert shown == text
        lines = (recorder.parent / f"calls.{job_id}").read_text().splitlines()
        calls = [line.split("\037")[:-1] for line in lines]
        assert [call[2] for call in calls] == ["start", "agent", "end"]
        assert {call[3] for call in calls} == {str(root)}
        assert (root / "logs" / f"slurm-{job_id}.log").exists()
        assert "Account=007 " in cluster.slurm("scontrol", "show", "job", "-o", job_id)
    assert not list(site.rglob("PWNED"))
    assert not Path("PWNED").exists()


def test_values_that_yaml_has_eaten_in_a_site_s_file_are_refused_with_their_quotes(cluster, site):
    write_site(site, partition="no", account="007", time_limit="12:00:00")
    done = run(cluster, site, *ONE)
    assert (done.returncode, done.stdout) == (2, "")
    path = site / "site" / "launch" / "mysite.yaml"
    said = done.stderr.splitlines()
    assert len(said) == 3
    for key, value in (("partition", "no"), ("account", "007"), ("time_limit", "12:00:00")):
        (line,) = [line for line in said if line.startswith(f"launch.{key}=")]
        assert "[yaml-eaten]" in line
        assert f'Try {key}: "{value}" in {path}' in line
    assert not (site / "runs").exists()


def test_everything_that_a_real_slurm_would_refuse_is_said_at_once(cluster, site, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = cluster.slurm("squeue", "-h", "-t", "all", "-o", "%i")
    done = run(
        cluster, site, "--run-dir", str(site / "run"), "hardware=h100x64", "model=gpt2_124m",
        "launch.partition=brief", "launch.secrets=[HF_TOKEN]", "launch.venv=/no/env",
        "launch.constraint=nvme",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    found = [line.partition("[")[2].partition("]")[0] for line in done.stderr.splitlines()]
    assert [name for name in found if name.islower()] == [
        "path-visible", "secret-set", "time-within-partition", "nodes-in-partition",
        "gpus-in-partition", "slurm-refused",
    ], done.stderr  # fmt: skip
    assert not (site / "run").exists()
    assert cluster.slurm("squeue", "-h", "-t", "all", "-o", "%i") == before
