"""The measurements of `launch calibrate` on this machine's CPU."""

import torch

from launcher.runtime import calibrate


def test_every_kind_is_measured_with_its_size(monkeypatch):
    monkeypatch.setattr(calibrate, "CPU_MATMULS", ((8, 8, 8),))
    monkeypatch.setattr(calibrate, "CPU_ATTENTION", ((8, 2, 4),))
    monkeypatch.setattr(calibrate, "CPU_BYTES", (1024,))
    monkeypatch.setattr(calibrate, "LEAST_S", 1e-4)
    rows = list(calibrate.measure(torch.device("cpu")))
    assert [row[:5] for row in rows] == [
        ("matmul", "fp32", 8, 8, 8), ("attention", "fp32", 8, 2, 4), ("memory", "fp32", 1024, 1, 1)
    ]  # fmt: skip
    assert all(row[5] > 0 for row in rows)
