"""A tracker without its package is named before the run starts."""

from __future__ import annotations

import pytest

from launcher.config import tracker_check
from launcher.config.load import load_run
from launcher.errors import ConfigError


def test_a_tracker_that_is_not_installed_is_refused_here_alone(monkeypatch):
    monkeypatch.setattr(tracker_check, "find_spec", lambda name: None)
    words = ["recipe=quickstart", "train.tracker=wandb"]
    with pytest.raises(ConfigError) as caught:
        load_run(words)
    (finding,) = caught.value.findings
    assert (finding.rule, finding.fix) == ("tracker-installed", "pip install wandb")
    load_run(["recipe=quickstart"])
    load_run(["model=llama3_8b", "hardware=h100x8", "parallelism=auto", "train.tracker=wandb"])
