"""Is everything that would fail a Slurm job found before it is submitted, all at once?

Slurm's programs are scripts here that answer as recorded from Slurm 22.05; tests/cluster asks real
ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launcher.config import tracker_check
from launcher.errors import SubmissionRefused
from launcher.plan.records import Plan
from launcher.submit import space
from launcher.submit.cluster import read_gpus
from launcher.submit.preflight import refuse_unready
from tests.factory import TINY, h100
from tests.submit.cases import bundled, planned
from tests.submit.slurm_says import Slurm

SINFO = """\
gpu*|up|1-00:00:00|6|idle|gpu:h100:8(S:0-1)
gpu*|up|1-00:00:00|2|drained|gpu:h100:8(S:0-1)
small|up|infinite|1|idle|gpu:h100:8
old|up|infinite|16|idle|gpu:4
cpu|up|30:00|64|mixed|(null)
closed|down|infinite|16|idle|gpu:h100:8"""
ASSOCIATIONS = "lab|normal,high\nteam|normal"
ENFORCED = "AccountingStorageEnforce = associations,limits,qos"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    found = Slurm(tmp_path / "programs", monkeypatch)
    found.program("sinfo", text=SINFO)
    found.program("sacctmgr", text=ASSOCIATIONS)
    found.program("scontrol", text=ENFORCED)
    note = "sbatch: Job 9 to start at 2026-01-01T00:00:00 using 16 processors on nodes n[1-2]"
    found.program("sbatch", then=f"cat > /dev/null; echo '{note}' >&2")
    return found


def two_nodes(nodes: int = 2, train: dict[str, object] | None = None, **launch: object) -> Plan:
    return planned(
        model=TINY | {"num_kv_heads": 4}, hardware=h100(num_nodes=nodes), train=train or {},
        parallelism={"tp": 4, "pp": 2, "dp": nodes}, launch={"name": "slurm", **launch},
    )  # fmt: skip


def preflight(plan: Plan, folder: Path) -> tuple[list[str], list[str]]:
    """Findings and notes."""
    bundle = bundled(folder, plan)
    try:
        return [], refuse_unready([plan], [folder], bundle.texts[bundle.script])
    except SubmissionRefused as error:
        return str(error).splitlines(), []


def rules(findings: list[str]) -> list[str]:
    return [line.partition("[")[2].partition("]")[0] for line in findings]


def test_a_job_that_can_run_is_not_held_up_and_its_start_is_told(slurm, tmp_path):
    plan = two_nodes(gpu_type="h100", time_limit="12:00:00", account="lab", qos="high")
    findings, notes = preflight(plan, tmp_path / "run")
    assert findings == []
    assert "Slurm expects the job to start at 2026-01-01T00:00:00" in notes
    assert slurm.calls("sbatch") == ["--test-only"]
    assert not (tmp_path / "run").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("launch", "found"),
    [
        ({"partition": "gpus"}, "launch.partition=gpus [partition-known]: this cluster has no "
         "partition gpus. Legal here: gpu, small, old, cpu, closed."),
        ({"partition": "closed"}, "launch.partition=closed [partition-up]: it is down. "
         "Legal here: gpu, small, old, cpu."),
        ({"time_limit": "2-00:00:00"}, "launch.time_limit=2-00:00:00 [time-within-partition]: "
         "partition gpu allows 1-00:00:00. Try launch.time_limit='\"1-00:00:00\"'."),
        ({"partition": "small"}, "hardware.num_nodes=2 [nodes-in-partition]: "
         "partition small has 1 nodes."),
        ({"partition": "old"}, "hardware.gpus_per_node=8 [gpus-in-partition]: 0 nodes of partition "
         "old have 8 GPUs, and 2 are needed; it has 4 x gpu per node."),
        ({"gpu_type": "a100"}, "launch.gpu_type=a100 [gpus-in-partition]: 0 nodes of partition gpu "
         "have 8 GPUs of type a100, and 2 are needed; it has 8 x h100 per node."),
        ({"gres": "gpu:a100:8"}, "launch.gres=gpu:a100:8 [gpus-in-partition]: 0 nodes of partition "
         "gpu have 8 GPUs of type a100, and 2 are needed; it has 8 x h100 per node."),
        ({"account": "labs"}, "launch.account=labs [account-known]: you have no such account. "
         "Legal here: lab, team."),
        ({"account": "team", "qos": "high"}, "launch.qos=high [qos-known]: your account has no "
         "such quality of service. Legal here: normal."),
    ],
)  # fmt: skip
def test_what_the_cluster_does_not_have_is_named_with_what_it_has(slurm, tmp_path, launch, found):
    assert preflight(two_nodes(**launch), tmp_path / "run")[0] == [found]


def test_of_several_partitions_one_that_can_is_enough(slurm, tmp_path):
    findings, notes = preflight(two_nodes(partition="small,gpu"), tmp_path / "run")
    assert findings == []
    assert any("[nodes-in-partition]: partition small has 1 nodes" in note for note in notes)
    findings, _ = preflight(two_nodes(partition="small,old"), tmp_path / "run")
    assert rules(findings) == ["nodes-in-partition", "gpus-in-partition"]


def test_gpus_are_not_asked_for_where_a_partition_means_its_gpus(slurm, tmp_path):
    assert preflight(two_nodes(partition="old", gres="none"), tmp_path / "run")[0] == []


def test_what_only_slurm_knows_is_blamed_on_the_key(slurm, tmp_path):
    said = "allocation failure: Invalid feature specification"
    slurm.program("sbatch", error=said)
    found = preflight(two_nodes(constraint="nvme"), tmp_path / "run")[0]
    assert found == [
        "launch.constraint [slurm-refused]: sbatch --test-only: Invalid feature specification."
    ]


def test_accounts_are_not_checked_where_accounting_says_nothing(slurm, tmp_path):
    slurm.program("sacctmgr", error="You are not running a supported accounting_storage plugin")
    findings, notes = preflight(two_nodes(account="anything"), tmp_path / "run")
    assert findings == []
    assert any("not checked" in note for note in notes)
    slurm.program("sacctmgr", text=ASSOCIATIONS)
    slurm.program("scontrol", text="AccountingStorageEnforce = none")
    findings, notes = preflight(two_nodes(account="anything"), tmp_path / "run")
    assert findings == []
    assert any("launch.account=anything is not among ['lab', 'team']" in note for note in notes)


def test_without_slurm_and_with_one_that_is_down_it_is_said(slurm, tmp_path, monkeypatch):
    slurm.program("sinfo", error="slurm_load_partitions: Unable to contact slurm controller")
    (one,) = preflight(two_nodes(), tmp_path / "run")[0]
    assert one.startswith("launch=slurm [slurm-unreachable]: slurm_load_partitions: Unable")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "slurm-not-here" in rules(preflight(two_nodes(), tmp_path / "run")[0])


# Around the workers


def test_everything_that_is_not_there_is_found_at_once(slurm, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(space, "_free_bytes", lambda path: 1000)
    slurm.program("sbatch", error="allocation failure: Invalid account")
    data = {"name": "tokens", "kind": "tokens", "path": "/no/tokens.bin"}
    plan = planned(
        model=TINY | {"num_kv_heads": 4}, hardware=h100(num_nodes=2), data=data,
        parallelism={"tp": 4, "pp": 2, "dp": 2}, checkpoint={"every_steps": 1},
        launch={
            "name": "slurm", "partition": "gpus", "account": "labs", "qos": "no",
            "container": "apptainer", "image": "/no/image.sif", "mounts": ("/no/mount:/inside",),
            "secrets": ("WANDB_API_KEY",), "setup": ("if true",), "venv": "/no/env",
            "python": "/no/python",
        },
    )  # fmt: skip
    assert rules(preflight(plan, tmp_path / "run")[0]) == [
        "data-visible", "path-visible", "path-visible", "path-visible", "path-visible",
        "secret-set", "checkpoints-fit-disk", "setup-readable", "partition-known", "account-known",
    ]  # fmt: skip


def test_data_inside_a_container_are_looked_for_where_they_are_outside(slurm, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "t.bin").write_bytes(b"1234")
    (tmp_path / "i.sif").touch()
    for inside, found in (("/inside", []), ("/elsewhere", ["data-visible"])):
        plan = planned(
            data={"name": "tokens", "kind": "tokens", "path": "/inside/t.bin"},
            launch={"name": "slurm", "container": "apptainer", "image": f"{tmp_path}/i.sif",
                    "mounts": (f"{tmp_path}/outside:{inside}",)},
        )  # fmt: skip
        assert rules(preflight(plan, tmp_path / "run")[0]) == found


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "/sys/run"])
def test_a_run_directory_that_cannot_be_written_is_found_by_trying(slurm, place):
    (one,) = preflight(two_nodes(), Path(place))[0]
    assert one.startswith(f"--run-dir={place} [run-dir-not-writable]: nothing can be written in /")


def test_a_run_directory_that_slurm_cannot_log_to_is_refused(slurm, tmp_path):
    assert rules(preflight(two_nodes(), tmp_path / "a\\b")[0]) == ["run-dir-for-slurm"]
    (tmp_path / "i.sif").touch()
    own = {"container": "apptainer", "image": f"{tmp_path}/i.sif"}
    assert rules(preflight(two_nodes(**own), tmp_path / "a,b")[0]) == ["run-dir-for-slurm"]


def test_room_is_for_the_checkpoints_of_every_task(slurm, tmp_path, monkeypatch):
    plan = planned(launch={"name": "slurm"}, checkpoint={"every_steps": 1, "keep": 1})
    script = bundled(tmp_path / "0", plan)
    text, needed = script.texts[script.script], 3 * plan.checkpoint_bytes
    monkeypatch.setattr(space, "_free_bytes", lambda path: needed)
    assert refuse_unready([plan], [tmp_path / "0"], text)
    folders = [tmp_path / str(number) for number in range(4)]
    with pytest.raises(SubmissionRefused, match="checkpoints-fit-disk"):
        refuse_unready([plan] * 4, folders, text)


def test_a_folder_that_nodes_usually_do_not_share_is_a_note(slurm):
    notes = preflight(two_nodes(), Path("/tmp/launch-run-that-is-not-there"))[1]
    assert any("usually do not share" in note for note in notes)


def test_the_package_of_a_tracker_is_looked_for_where_workers_are_of_this_interpreter(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.setattr(tracker_check, "find_spec", lambda name: None)
    tracked = {"train": {"tracker": "wandb"}}
    assert rules(preflight(two_nodes(**tracked), tmp_path / "run")[0]) == ["tracker-installed"]
    own = {"container": "pyxis", "image": "lab/train:1"}
    assert preflight(two_nodes(**tracked, **own), tmp_path / "run")[0] == []


def test_conda_is_looked_for_unless_modules_bring_it(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert rules(preflight(two_nodes(conda="env"), tmp_path / "run")[0]) == ["conda-there"]
    own = {"conda": "env", "modules": ("miniforge",)}
    assert preflight(two_nodes(**own), tmp_path / "run")[0] == []


def test_slurm_is_asked_with_nothing_of_another_job(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_QOS", "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    slurm.program("sbatch", then=f"cat > /dev/null; env > {tmp_path}/env")
    preflight(two_nodes(), tmp_path / "run")
    seen = (tmp_path / "env").read_text().splitlines()
    own = [line for line in seen if line.startswith(("SLURM", "SBATCH"))]
    assert own == ["SLURM_CONF=/etc/slurm.conf"]


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:8(S:0-1)", (("h100", 8),)),
        ("gpu:8", (("", 8),)),
        ("fs:1,gpu:a100:4(IDX:0-3),gpu:a30:2", (("a100", 4), ("a30", 2))),
        ("(null)", ()),
        ("gpu_memory:80", ()),
    ],
)
def test_the_gpus_of_a_node_are_read_as_sinfo_shows_them(gres, gpus):
    assert read_gpus(gres) == gpus


def test_the_test_s_own_programs_come_first(slurm):
    assert shutil.which("sinfo").startswith(os.environ["PATH"].partition(":")[0])
