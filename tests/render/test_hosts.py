"""Is the script of plain hosts what the plan says, and does hostile text stay text?"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.plan.records import Plan
from launcher.submit.write import write_bundle
from tests.factory import TINY, h100
from tests.render.shell import HOSTILE
from tests.submit.cases import bundled, planned

GOLDEN = Path(__file__).parent / "golden"
AROUND = {
    "modules": ("cuda/12.4",), "venv": "/home/me/env", "setup": ("ulimit -n 65536",),
    "env": {"NCCL_SOCKET_IFNAME": "ib0"}, "secrets": ("WANDB_API_KEY",),
}  # fmt: skip


def two_hosts(name: str, **launch: object) -> Plan:
    parallelism = {"tp": 4, "pp": 2, "dp": 2}
    model = TINY | {"num_kv_heads": 4}
    launch = {"name": name, "hosts": ("node-a", "10.0.0.2"), **launch}
    return planned(model=model, hardware=h100(num_nodes=2), parallelism=parallelism, launch=launch)


def script(plan: Plan, root: Path = Path("/runs/r 1")) -> str:
    bundle = bundled(root, plan, python="python")
    return bundle.texts[bundle.script]


@pytest.mark.parametrize("name", ["torchrun", "mpirun"])
def test_a_list_of_hosts_renders_to_its_golden_script(name):
    path, text = GOLDEN / f"{name}.sh", script(two_hosts(name, **AROUND))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
@pytest.mark.parametrize("name", ["torchrun", "mpirun"])
def test_shellcheck_finds_nothing(name, tmp_path):
    everywhere = " ".join(HOSTILE)
    launch = {"modules": tuple(HOSTILE), "venv": everywhere, "python": everywhere}
    launch |= {"env": {f"GIVEN_{n}": text for n, text in enumerate(HOSTILE)}}
    (tmp_path / "plain.sh").write_text(script(two_hosts(name, **AROUND)))
    (tmp_path / "hostile.sh").write_text(script(two_hosts(name, **launch), Path("/") / everywhere))
    files = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_run_directory_is_one_word(tmp_path, shell, text):
    root = tmp_path / "runs" / text
    write_bundle(bundled(root, two_hosts("torchrun", env={"GIVEN": text}), python="python"))
    (call,) = shell(root / "command.sh")
    assert call == ["python", "-m", "launcher.node", "agent", str(root)]
    assert f"GIVEN={text}\n" in (tmp_path / "record.env").read_text()


@pytest.mark.parametrize("text", HOSTILE)
def test_open_mpi_starts_the_script_again_once_on_every_host(tmp_path, shell, text):
    root = tmp_path / "runs" / text
    plan = two_hosts("mpirun", secrets=("WANDB_API_KEY",))
    write_bundle(bundled(root, plan, python="python"))
    nested = {"PMIX_RANK": "1", "OMPI_MCA_orte_app_num": "0", "OMPI_MCA_btl": "tcp,self"}
    (call,) = shell(root / "command.sh", WANDB_API_KEY="s3cret", **nested)
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    assert call == [
        "mpirun", *as_root, "-np", "2", "--map-by", "ppr:1:node", "--bind-to", "none",
        "--host", "node-a:1,10.0.0.2:1", "-x", "WANDB_API_KEY", "--wdir", str(root),
        "bash", f"{root}/command.sh", "host",
    ]  # fmt: skip
    seen = (tmp_path / "record.env").read_text()
    assert "OMPI_MCA_btl=tcp,self" in seen
    assert "PMIX_RANK" not in seen
    assert "OMPI_MCA_orte" not in seen


def test_what_open_mpi_tells_a_host_ends_at_the_agent(tmp_path, shell):
    write_bundle(bundled(tmp_path / "run", two_hosts("mpirun"), python="python"))
    path = tmp_path / "host.sh"
    path.write_text(f"exec bash {tmp_path}/run/command.sh host")
    told = {"OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1", "OMPI_MCA_btl": "tcp,self"}
    (call,) = shell(path, **told)
    assert call == ["python", "-m", "launcher.node", "agent", str(tmp_path / "run"), "1"]
    seen = (tmp_path / "record.env").read_text()
    assert not any(f"\n{name}=" in seen for name in told)


def test_a_secret_is_named_and_never_written(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    for name in ("torchrun", "mpirun"):
        assert "s3cret" not in script(two_hosts(name, **AROUND))
