"""What this machine sees of a job before it is submitted: paths, secrets, the script."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.config.data_files import missing_data
from launcher.config.tracker_check import check_tracker
from launcher.errors import Finding
from launcher.plan.records import Plan
from launcher.render.container import read_mount
from launcher.submit.slurm_ask import ask

_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def around_the_workers(plan: Plan, folder: Path) -> Iterator[Finding]:
    """Data, image, mounts, environment and secrets of one run, as far as this machine sees them."""
    launch, run = plan.run.launch, plan.run
    if launch.name == "slurm" and "\\" in str(folder):
        reason = "Slurm does not write a log to a path with a backslash"
        yield Finding(field="--run-dir", value=str(folder), rule="run-dir-for-slurm", reason=reason)
    if launch.container and ("," in str(folder) or ":" in str(folder)):
        reason = "mounts are separated by commas, and their parts by colons"
        yield Finding(field="--run-dir", value=str(folder), rule="run-dir-for-slurm", reason=reason)
    yield from missing_data(run, lambda path: _on_the_node(plan, path))
    places = [(f"launch.mounts.{n}", read_mount(m).source) for n, m in enumerate(launch.mounts)]
    if launch.image is not None and launch.image.startswith("/"):
        places.append(("launch.image", launch.image))
    if launch.venv is not None:
        places.append(("launch.venv", f"{launch.venv}/bin/activate"))
    if launch.python is not None and launch.python.startswith("/"):
        places.append(("launch.python", launch.python))
    for key, path in places:
        if not os.path.exists(os.path.expanduser(path)):
            reason = "it is not there, on this machine, which sees what the nodes see"
            yield Finding(field=key, value=path, rule="path-visible", reason=reason)
    if not (launch.python or launch.venv or launch.conda or launch.container):
        yield from check_tracker(run)
    for name in launch.secrets:
        if not os.environ.get(name):
            reason = f"{name} is not set in this shell, from which jobs inherit it"
            yield Finding(
                field="launch.secrets", value=name, rule="secret-set", reason=reason,
                fix=f"export {name}=...",
            )  # fmt: skip
    if launch.conda is not None and not launch.modules and not shutil.which("conda"):
        reason = "there is no conda here to activate it with"
        fix = "launch.modules with the module that has conda"
        yield Finding(
            field="launch.conda", value=launch.conda, rule="conda-there", reason=reason, fix=fix
        )


def _on_the_node(plan: Plan, path: str) -> str:
    """Where a path inside the container lies outside."""
    if plan.run.launch.container is not None:
        for mount in map(read_mount, plan.run.launch.mounts):
            if path == mount.inside or path.startswith(mount.inside.rstrip("/") + "/"):
                return mount.source + path[len(mount.inside) :]
    return path


def writable(folder: Path) -> list[Finding]:
    """Whether files can be made where the run directory will be; tried, since modes may lie."""
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".launch-") as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        reason = f"nothing can be written in {place}: {error.strerror}"
        fix = "--run-dir in a directory that can be written"
        return [
            Finding(
                field="--run-dir", value=str(folder), rule="run-dir-not-writable", reason=reason,
                fix=fix,
            )
        ]  # fmt: skip
    return []


def place_notes(folder: Path) -> list[str]:
    """Whether the run directory lies where nodes usually do not see it."""
    if any(str(folder).startswith(f"{place}/") for place in _LOCAL):
        return [f"{folder} is on a file system that nodes usually do not share; they must see it"]
    return []


def readable_script(script: str) -> list[Finding]:
    """A line of launch.setup may be torn: bash reads the whole script before a node does."""
    said = ask("bash", "-n", text=script)
    if said.code == 0:
        return []
    return [Finding(field="launch.setup", rule="setup-readable", reason=f"bash: {said.reason}")]
