"""One cluster for the whole session; where Slurm or privileges are missing, its tests say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.runs import STEPS, Job, submit
from tests.cluster.slurm import Cluster, why_not_here


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    reason = why_not_here()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, every node idle before and nothing left running after the test."""
    yield running_cluster
    running_cluster.slurm("scancel", "--user=root")
    running_cluster.mend()


@pytest.fixture(scope="session")
def undisturbed(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run that the others are compared with."""
    job = submit(running_cluster, tmp_path_factory.mktemp("undisturbed"), "run", *STEPS)
    assert job.wait_for_end() == "COMPLETED", job.log
    return job
