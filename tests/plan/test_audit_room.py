"""What a plan that does not fit is told to type makes it fit."""

import json

import pytest

from launcher.cli import main
from launcher.errors import EXIT_DOES_NOT_FIT, EXIT_DONE
from launcher.plan.audit_room import room_fixes
from launcher.plan.build import build_plan
from tests.factory import LLAMA3_70B, h100, make_run

TOO_LARGE = [
    "model=llama3_8b hardware=h100x8 parallelism.tp=1 parallelism.pp=1 train.micro_batch_size=8",
    "model=llama3_70b hardware=h100x64 parallelism.tp=1 parallelism.pp=1 parallelism.zero_stage=1",
    "model=llama3_70b hardware=h100x8",
    "model=llama3_70b hardware=v100x64 precision=fp32 parallelism.pp=2 parallelism.zero_stage=0",
    "model=llama3_405b hardware=h100x64 parallelism.tp=8 parallelism.recompute=none"
    " train.global_batch_size=64",
    "model=llama3_405b hardware=b200x8 parallelism.pp=1",
    "model=deepseek_v3 hardware=h100x8 parallelism.tp=8 parallelism.recompute=none",
    "model=deepseek_v3 hardware=mi300x64 parallelism.pp=2 parallelism.engine=fsdp2",
    "model=gpt_1t hardware=h100x16384 parallelism.tp=1 parallelism.pp=1",
    "model=gpt3_175b hardware=a100x64 parallelism.tp=2 parallelism.pp=8 train.micro_batch_size=4",
    "model=llama3_8b hardware=h100x8 hardware.network=null train.micro_batch_size=64"
    " parallelism.recompute=full",
    "model=llama3_8b hardware=h100x64 hardware.gpu.memory_bytes=1000",
]


def plan(words, capsys):
    code = main(["plan", "--json", *words])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("line", TOO_LARGE)
def test_the_fix_fits_as_it_is_typed(line, capsys):
    code, document, err = plan(line.split(), capsys)
    assert code == EXIT_DOES_NOT_FIT
    (fix,) = [one["fix"] for one in document["warnings"] if one["id"] == "does-not-fit"]
    named = {word.partition("=")[0] for word in fix.split()}
    kept = [word for word in line.split() if word.partition("=")[0] not in named]
    code, document, err = plan([*kept, *fix.split()], capsys)
    assert code == EXIT_DONE, err
    assert document["memory"]["fits"]


def test_the_last_line_says_the_same_fix(capsys):
    words = TOO_LARGE[1].split()
    _, document, _ = plan(words, capsys)
    (fix,) = [one["fix"] for one in document["warnings"] if one["id"] == "does-not-fit"]
    assert main(["plan", *words]) == EXIT_DOES_NOT_FIT
    assert f"GiB too much. Try {fix}, or `launch search`" in capsys.readouterr().err


def test_what_costs_least_comes_first_and_keys_are_named_once():
    run = make_run(model=LLAMA3_70B, hardware=h100(1), parallelism={"tp": 1, "pp": 1, "dp": 8},
                   **{"train.micro_batch_size": 4})  # fmt: skip
    made = build_plan(run)
    fixes = list(room_fixes(made.run, made.layout, made.memory))
    assert fixes[:3] == [
        "parallelism.recompute=full", "train.micro_batch_size=2", "train.micro_batch_size=1",
    ]  # fmt: skip
    assert "parallelism.recompute=full train.micro_batch_size=1 parallelism.zero_stage=3" in fixes
    assert fixes[-1].startswith("hardware.gpu.memory_bytes=")
    for fix in fixes:
        keys = [word.partition("=")[0] for word in fix.split()]
        assert len(keys) == len(set(keys))


def test_a_plan_that_fits_is_offered_nothing_that_does_not(capsys):
    nodes_of_six = ["hardware=h100x8", "hardware.gpus_per_node=6", "hardware.num_nodes=2"]
    words = ["model=mixtral_8x7b", *nodes_of_six, "parallelism.tp=4", "parallelism.pp=3"]
    code, document, _ = plan(words, capsys)
    assert code == EXIT_DONE
    fixes = {one["id"]: one["fix"] for one in document["warnings"]}
    assert fixes["tp-crosses-nodes"] == ""
    assert plan([*words[:-2], "parallelism.tp=2", "parallelism.pp=3"], capsys)[0] != EXIT_DONE


@pytest.mark.parametrize(
    ("gib", "fix"), [(240, "parallelism.offload=optimizer"), (120, "parallelism.offload=none")]
)
def test_what_waits_in_too_little_ram_is_told_to_stay_on_the_device(gib, fix, capsys):
    words = (
        "model=llama3_8b", "hardware=h100x8", "parallelism.tp=1", "parallelism.offload=parameters",
        "train.sequence_length=960", f"hardware.node.host_memory_bytes={gib * 2**30}",
    )  # fmt: skip
    _, document, _ = plan(words, capsys)
    found = {one["id"]: one["fix"] for one in document["warnings"]}
    assert found["host-memory"] == fix
    code, document, _ = plan((*words, fix), capsys)
    assert code == EXIT_DONE
    assert "host-memory" not in {one["id"] for one in document["warnings"]}
