"""What is seen inside a container, and the options that say so."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.plan.records import Plan

INSIDE = "/launch"
"""Where the launcher's own code is seen inside: as the package `launcher` in this folder."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One path of a node that is seen inside."""

    source: str
    inside: str
    options: str = ""
    """Such as ro."""

    def __str__(self) -> str:
        """As Pyxis and Apptainer both read it."""
        return ":".join(part for part in (self.source, self.inside, self.options) if part)


def read_mount(text: str) -> Mount:
    """One of launch.mounts.  read_mount("/data:/d:ro") -> source /data, inside /d, options ro"""
    source, _, rest = text.partition(":")
    inside, _, options = rest.partition(":")
    return Mount(source=source, inside=inside or source, options=options)


def container_mounts(plan: Plan, run_dir: Path, package: Path) -> list[Mount]:
    """The run directory, the launcher's code, the user's own, and data that these do not cover."""
    mounts = [
        Mount(source=str(run_dir), inside=str(run_dir)),
        Mount(source=str(package), inside=f"{INSIDE}/launcher", options="ro"),
        *(read_mount(text) for text in plan.run.launch.mounts),
    ]
    for place in _data_places(plan):
        if not any(_covers(mount.inside, place) for mount in mounts):
            mounts.append(Mount(source=place, inside=place))
    return mounts


def container_options(plan: Plan, run_dir: Path, package: Path, names: Sequence[str]) -> str:
    """Options of srun (Pyxis) or of `apptainer exec`, quoted, the image included."""
    launch = plan.run.launch
    mounts = container_mounts(plan, run_dir, package)
    image = launch.image or ""
    if launch.container == "pyxis":
        words = [
            f"--container-image={image}",
            f"--container-mounts={','.join(str(mount) for mount in mounts)}",
            f"--container-env={','.join(names)}",
            f"--container-workdir={run_dir}",
            *launch.container_options,
        ]
    else:
        words = [
            *(["--nv"] if plan.run.hardware.device == "cuda" else []),
            *(f"--bind={mount}" for mount in mounts),
            f"--pwd={run_dir}",
            *launch.container_options,
            image,
        ]
    return " \\\n    ".join(shlex.quote(word) for word in words)


def _data_places(plan: Plan) -> Iterator[str]:
    """Folders with data, where they are named by absolute paths."""
    run = plan.run
    kinds = [(run.data.kind, run.data.path)]
    if run.data.kind == "mixture":
        kinds = [(source.kind, source.path) for source in run.data.sources]
    places = [
        path if kind == "store" else os.path.dirname(path)
        for kind, path in kinds
        if path is not None and kind in ("store", "tokens", "megatron")
    ]
    if run.train.init_from is not None:
        places.append(run.train.init_from)
    yield from dict.fromkeys(place for place in places if os.path.isabs(place))


def _covers(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
