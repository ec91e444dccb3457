"""Is nvidia-smi understood, whatever its age, and its silence, too?"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.node.checks.gpus import Gpu, ask_gpus, read_gpus

# As driver 550 prints it on an H100; the second line as a GPU without ECC would.
LINES = "0, 550.54.15, 1980, 0, 0x0000000000000001\n1, 550.54.15, 1980, [N/A], [N/A]\n"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a script in the place of nvidia-smi."""

    def put(script: str) -> None:
        path = Path(tmp_path, "nvidia-smi")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


def test_fields_are_read_and_unknown_ones_left_open():
    first, second = read_gpus(LINES)
    assert first == Gpu(
        index=0, driver="550.54.15", max_clock_mhz=1980.0, ecc_errors=0, slowed_by=1
    )
    assert (second.ecc_errors, second.slowed_by) == (None, None)
    assert read_gpus("No devices were found\n") == ()


def test_an_older_driver_is_asked_with_its_own_words(smi):
    smi(
        'case "$1" in *clocks_event*) echo "Field \\"x\\" is not a valid field to query."; exit 2;;'
        ' *) echo "0, 470.1, 1410, 0, 0x40";; esac'
    )
    (gpu,) = ask_gpus().found
    assert (gpu.driver, gpu.slowed_by) == ("470.1", 0x40)


def test_what_nvidia_smi_complains_of_is_passed_on(smi):
    smi('echo "NVIDIA-SMI has failed because it couldn\'t communicate with the driver."; exit 9')
    assert "couldn't communicate" in ask_gpus().problem


def test_without_nvidia_smi_nobody_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_gpus() is None
