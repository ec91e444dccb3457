"""What all tests share: GPU tests skip without a GPU, and on CI nothing else may skip."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest


def _has_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def _group(item: pytest.Item) -> str:
    """Tests of one file share processes and results; those on the cluster share the cluster."""
    file = item.nodeid.partition("::")[0]
    return "cluster" if file.startswith("tests/cluster/") else file


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    is_gpu = item.get_closest_marker("gpu") is not None
    if report.skipped and os.environ.get("CI") and not is_gpu and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI, where it could run: {report.longrepr}"


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a test share two cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
