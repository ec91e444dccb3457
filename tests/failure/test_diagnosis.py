"""Is the cause of a failure known by its words, and what to change named with keys that exist?"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launcher.config.schema import Record, Run
from launcher.errors import ConfigError
from launcher.failure.causes import CAUSES, find_cause, telling_line
from launcher.failure.diagnosis import diagnose
from launcher.failure.first import Traces
from launcher.failure.remedies import _TABLE, find_remedies
from launcher.plan.build import build_plan
from launcher.plan.resume import plan_resumed
from launcher.plan.run_files import RunFiles
from launcher.submit.postmortem import explain_failure
from tests.factory import LLAMA3_70B, h100, make_run
from tests.submit.cases import bundled

# Lines as CUDA, NCCL, gloo, torchrun, Slurm, the C library and our own workers write them.
ERRORS = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "out_of_memory",
    "RuntimeError: CUDA error: out of memory": "out_of_memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`": "out_of_memory",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.": "host_out_of_memory",
    "OSError: [Errno 12] Cannot allocate memory": "host_out_of_memory",
    "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried": "host_out_of_memory",
    "killed by signal SIGKILL (out of memory, or killed by hand)": "killed",
    "RunFailed: the loss is nan at step 12; try a lower optimizer.learning_rate": "not_a_number",
    "RunFailed: the gradient norm is inf at step 3; try": "not_a_number",
    "Hung: no step within 600 s after step 12": "hang",
    "[rank3]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)": "timeout",
    "RuntimeError: [../gloo] Timed out waiting 600000ms for recv operation": "timeout",
    "RuntimeError: [enforce fail at gloo/transport/tcp/pair.cc:446] . Connection closed by peer "
    "[10.0.0.2]:3": "network",
    "OSError: [Errno 28] No space left on device": "disk_full",
    "RunFailed: the last checkpoint was not written: Disk quota exceeded": "disk_full",
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local "
    "network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE": "port_taken",
    "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while "
    "trying to connect to (node1, 29500).": "rendezvous",
    "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError": "rendezvous",
    "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:1333, unhandled "
    "system error": "network",
    "CUDA error: uncorrectable ECC error encountered": "bad_gpu",
    "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.": "bad_gpu",
    "RuntimeError: The NVIDIA driver on your system is too old; CUDA driver version is "
    "insufficient for CUDA runtime version": "driver",
    "RuntimeError: No CUDA GPUs are available; no CUDA-capable device is detected": "driver",
    "ModuleNotFoundError: No module named 'deepspeed'": "missing_module",
    "slurmstepd: error: execve(): /opt/venv/bin/python: No such file or directory":
        "missing_module",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/x'": "missing_file",
    "PermissionError: [Errno 13] Permission denied: '/data/x'": "no_permission",
    "OSError: [Errno 5] Input/output error": "bad_disk",
    "killed by signal SIGBUS": "shared_memory",
    "killed by signal SIGSEGV": "crashed",
    "killed by signal SIGTERM": "stopped_from_outside",
    "RuntimeError: CUDA error: an illegal memory access was encountered": "device_code",
    "RunFailed: process 3 on a since b works in /r; two jobs would mix their files": "run_in_use",
    "ConfigError: /r/run.yaml: train.steps [run-readable]: no": "configuration",
    "ValueError: x": "code",
    "ended with exit code 3": "unknown",
    "": "unknown",
}  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), ERRORS.items())
def test_a_cause_is_known_by_its_words(error, kind):
    assert find_cause(error).kind == kind


def test_every_cause_has_an_example():
    assert {cause.kind for cause in CAUSES} <= {*ERRORS.values(), "bad_node"}


def test_remedies_are_for_causes_that_exist():
    assert set(_TABLE) <= {cause.kind for cause in CAUSES} | {"time_limit"}


def test_a_log_is_searched_from_its_end_and_plain_words_tell_nothing():
    log = "No space left on device\nCUDA out of memory. Tried\nconnection closed by peer\nbye\n"
    line, cause = telling_line(log)
    assert (line, cause.kind) == ("CUDA out of memory. Tried", "out_of_memory")
    assert telling_line("epoch 1\nFileNotFoundError: x\n") is None


def big(**overrides: object) -> Run:
    degrees = {"tp": 8, "pp": 1, "dp": 8, "recompute": "none", "zero_stage": 1}
    run = make_run(
        model=LLAMA3_70B,
        hardware=h100(),
        **{
            "parallelism": {"name": "x", **degrees},
            "train": {"steps": 1000, "num_microbatches": 8, "micro_batch_size": 4},
            "precision": {"name": "bf16", "compute": "bf16"},
            "launch": {"name": "slurm"},
            **overrides,
        },
    )
    return build_plan(run).run


def test_remedies_for_memory_are_predicted_and_the_fastest_comes_first():
    run = big()
    remedies = find_remedies("out_of_memory", run, "node1")
    assert remedies
    plans = [plan_resumed(run, [remedy.override]) for remedy in remedies]
    present = plan_resumed(run, ())
    assert all(plan.memory.peak_bytes < present.memory.peak_bytes for plan in plans)
    times = [plan.time.step_s for plan in plans]
    assert times == sorted(times)
    assert f"{plans[0].memory.peak_bytes / 2**30:.1f} GiB" in remedies[0].why


@pytest.mark.parametrize("kind", sorted(_TABLE))
@pytest.mark.parametrize("name", ["local", "slurm"])
def test_every_remedy_names_a_key_and_every_override_can_be_typed(kind, name):
    run = big(launch={"name": name})
    for remedy in find_remedies(kind, run, "node1.site", "FileNotFoundError"):
        assert _field(Run, remedy.key.split(".")), remedy.key
        if remedy.override:
            try:
                plan_resumed(run, [remedy.override])
            except ConfigError as error:
                pytest.fail(f"{remedy.override}: {error}")


def _field(model: type[Record], path: list[str]) -> bool:
    first, *rest = path
    field = model.model_fields.get(first)
    return field is not None and (not rest or _field(field.annotation, rest))


def test_half_the_learning_rate_is_the_first_thing_after_a_nan():
    first, *_ = find_remedies("not_a_number", big(), "")
    assert first.override == "optimizer.learning_rate=0.0005"


def test_a_bad_node_is_excluded_by_slurms_name_of_it():
    (remedy,) = find_remedies("bad_gpu", big(), "node7.cluster.example")
    assert remedy.override == "launch.exclude=node7"


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    bundle = bundled(tmp_path)
    bundle.files.logs.mkdir()
    for path, text in bundle.texts.items():
        path.write_text(text)
    return bundle.files


def tell(files: RunFiles, rank: int, error: str) -> None:
    document = {"rank": rank, "node": "n7", "error": error, "time": time.time(), "is_echo": False}
    files.rank_error(rank).write_text(json.dumps(document))


def test_the_explanation_names_rank_node_coordinates_error_log_cause_and_remedy(files):
    tell(files, 3, "RunFailed: the loss is nan at step 2")
    assert explain_failure(files, 1).splitlines()[:4] == [
        "rank 3 on node n7 (dp 0, pp 1, tp 1) failed: RunFailed: the loss is nan at step 2",
        f"  log: {files.logs / 'rank_3.log'}",
        "  cause: the training diverged: a loss or a gradient is not a finite number "
        "[not_a_number]",
        "  try optimizer.learning_rate=0.0005: half of it, from the newest checkpoint on",
    ]


@pytest.mark.parametrize("name", ["run", "plan"])
@pytest.mark.parametrize("text", ["", "{", "[]", "a: b", "\0"])
def test_torn_frozen_files_hide_no_failure(files, name, text):
    getattr(files, name).write_text(text)
    tell(files, 3, "ValueError: real")
    found = diagnose(Traces(files=files))
    assert found.failure.error == "ValueError: real"
    assert json.dumps(found.to_json())


def test_a_rank_that_the_layout_does_not_have_has_no_place(files):
    tell(files, 99, "ValueError: real")
    assert diagnose(Traces(files=files)).place == ""


def test_without_a_word_from_anybody_the_end_of_torchruns_log_is_shown(files):
    files.launcher_log.write_text("\n".join(f"line {number}" for number in range(20)))
    text = explain_failure(files, 7)
    assert text.startswith("the run failed with exit code 7\n  line 12\n")
    assert text.endswith(f"  line 19\n  log: {files.launcher_log}")


def test_without_any_log_the_exit_code_is_shown(files):
    assert explain_failure(files, 7).startswith("the run failed with exit code 7")


def test_every_cause_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    rows = {row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| ")}
    assert {cause.kind for cause in CAUSES} <= rows
