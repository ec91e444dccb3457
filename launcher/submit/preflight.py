"""Everything that would fail a Slurm job and can be seen before it waits: all findings at once."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.config.data_files import missing_data
from launcher.config.slurm_time import slurm_seconds
from launcher.errors import Finding, SubmissionRefused
from launcher.plan.records import Plan
from launcher.render.container import read_mount
from launcher.submit.cluster import (
    Partition,
    enforces_associations,
    read_associations,
    read_partitions,
)
from launcher.submit.slurm_ask import NOT_FOUND, ask
from launcher.submit.space import disk_finding

# What sbatch says -> the key that it is about (slurm_strerror).
_BLAMED = (
    ("partition", "launch.partition"),
    ("feature", "launch.constraint"),
    ("reservation", "launch.reservation"),
    ("node name", "launch.nodelist"),
    ("time", "launch.time_limit"),
    ("account", "launch.account"),
    ("qos", "launch.qos"),
    ("array", "--multirun"),
    ("gres", "launch.gres"),
    ("memory", "launch.mem"),
    ("node configuration", "hardware"),
    ("node count", "hardware.num_nodes"),
    ("option", "launch.sbatch_options"),
)
_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found."""

    findings: list[Finding] = field(default_factory=list)
    """Any of them stops the submission."""
    notes: list[str] = field(default_factory=list)
    """Worth knowing."""


def refuse_unready(
    plans: Sequence[Plan], folders: Sequence[Path], script: str, first_step: int = 0
) -> list[str]:
    """Raise SubmissionRefused with every finding; notes otherwise.

    Args:
        plans: of the jobs; they ask the queue for the same.
        folders: their run directories.
        script: what is to be submitted.
        first_step: where a resumed run goes on.

    """
    report = Report()
    findings = report.findings
    for plan, folder in zip(plans, folders, strict=True):
        findings += _around_the_workers(plan, folder)
        if finding := disk_finding(plan, folder, first_step, len(plans)):
            findings.append(finding)
    findings += _writable(folders[0])
    report.notes.extend(_place_notes(folders[0]))
    findings += _bash(script)
    _ask_cluster(plans[0], script, report)
    unique = list({str(finding): finding for finding in findings}.values())
    if unique:
        raise SubmissionRefused("\n".join(str(finding) for finding in unique))
    return report.notes


def _ask_cluster(plan: Plan, script: str, report: Report) -> None:
    partitions, said = read_partitions()
    if said.code == NOT_FOUND:
        reason = "there is no Slurm on this machine"
        fix = "a login node of the cluster, or --dry-run for the script"
        report.findings.append(
            Finding(field="launch", value="slurm", rule="slurm-not-here", reason=reason, fix=fix)
        )
        return
    if said.code != 0:
        report.findings.append(
            Finding(field="launch", value="slurm", rule="slurm-unreachable", reason=said.reason)
        )
        return
    own = [*_partition_findings(plan, partitions), *_account_findings(plan, report)]
    report.findings.extend(own)
    tested = ask("sbatch", "--test-only", text=script)
    if tested.code != 0:
        blamed = _blamed(tested.reason)
        # What is explained above with legal values is not said twice.
        if not any(finding.field.startswith(blamed) for finding in own):
            reason = f"sbatch --test-only: {tested.reason}"
            report.findings.append(Finding(field=blamed, rule="slurm-refused", reason=reason))
    elif expected := re.search(r"Job \S+ (to start at \S+).*", tested.error):
        report.notes.append(f"Slurm expects the job {expected[1]}")


def _blamed(reason: str) -> str:
    return next((key for words, key in _BLAMED if words in reason.lower()), "launch")


def _partition_findings(plan: Plan, partitions: Sequence[Partition]) -> Iterator[Finding]:
    launch = plan.run.launch
    names = [partition.name for partition in partitions]
    if launch.partition is None:
        chosen = [partition for partition in partitions if partition.is_default]
        if not chosen:
            reason = "this cluster has no default partition"
            yield Finding(
                field="launch.partition", rule="partition-known", reason=reason, legal=names
            )
    else:
        wanted = launch.partition.split(",")
        chosen = [partition for partition in partitions if partition.name in wanted]
        for name in wanted:
            if name not in names:
                yield Finding(
                    field="launch.partition", value=launch.partition, rule="partition-known",
                    reason=f"this cluster has no partition {name}", legal=names,
                )  # fmt: skip
    for partition in chosen:
        yield from _one_partition(plan, partition, partitions)


def _one_partition(
    plan: Plan, partition: Partition, partitions: Sequence[Partition]
) -> Iterator[Finding]:
    launch, nodes = plan.run.launch, plan.layout.nodes
    if not partition.is_up:
        others = [other.name for other in partitions if other.is_up]
        yield Finding(
            field="launch.partition", value=partition.name, rule="partition-up",
            reason="it is down", legal=others,
        )  # fmt: skip
    wanted_s, most_s = slurm_seconds(launch.time_limit or ""), partition.seconds
    if wanted_s is not None and most_s is not None and wanted_s > most_s:
        yield Finding(
            field="launch.time_limit", value=launch.time_limit, rule="time-within-partition",
            reason=f"partition {partition.name} allows {partition.time_limit}",
            fix=f"launch.time_limit='\"{partition.time_limit}\"'",
        )  # fmt: skip
    if nodes > partition.num_nodes:
        yield Finding(
            field="hardware.num_nodes", value=nodes, rule="nodes-in-partition",
            reason=f"partition {partition.name} has {partition.num_nodes} nodes",
        )  # fmt: skip
    yield from _gpu_findings(plan, partition)


def _gpu_findings(plan: Plan, partition: Partition) -> Iterator[Finding]:
    launch, count = plan.run.launch, plan.layout.gpus_per_node
    if launch.gres == "none" or (plan.run.hardware.device != "cuda" and launch.gres is None):
        return
    kind = launch.gpu_type or ""
    if launch.gres is not None:
        named = re.search(r"gpu:([^:,0-9][^:,]*):", launch.gres)
        kind = named[1] if named else ""
    if partition.nodes_with(kind, count) >= min(plan.layout.nodes, partition.num_nodes):
        return
    there = {
        f"{number} x {name or 'gpu'}" for group in partition.groups for name, number in group.gpus
    }
    field = "hardware.gpus_per_node"
    if kind:
        field = "launch.gpu_type" if launch.gpu_type else "launch.gres"
    wanted = f"{count} GPUs" + (f" of type {kind}" if kind else "")
    yield Finding(
        field=field,
        value=count if not kind else launch.gpu_type or launch.gres,
        rule="gpus-in-partition",
        reason=f"{partition.nodes_with(kind, count)} nodes of partition {partition.name} have "
        f"{wanted}, and {plan.layout.nodes} are needed; it has "
        f"{', '.join(sorted(there)) or 'no GPUs'} per node",
    )


def _account_findings(plan: Plan, report: Report) -> Iterator[Finding]:
    launch = plan.run.launch
    if launch.account is None and launch.qos is None:
        return
    known = read_associations()
    if known is None:
        report.notes.append("launch.account and launch.qos are not checked: sacctmgr says nothing")
        return
    if launch.account is not None and launch.account not in known:
        if enforces_associations():
            yield Finding(
                field="launch.account", value=launch.account, rule="account-known",
                reason="you have no such account", legal=sorted(known),
            )  # fmt: skip
        else:
            report.notes.append(f"launch.account={launch.account} is not among {sorted(known)}")
    accounts = known if launch.account is None else {launch.account}
    allowed = {name for account in accounts for name in known.get(account, set())}
    if launch.qos is not None and allowed and launch.qos not in allowed:
        yield Finding(
            field="launch.qos", value=launch.qos, rule="qos-known",
            reason="your account has no such quality of service", legal=sorted(allowed),
        )  # fmt: skip


def _around_the_workers(plan: Plan, folder: Path) -> Iterator[Finding]:
    """Data, image, mounts, environment and secrets of one run, as far as this machine sees them."""
    launch, run = plan.run.launch, plan.run
    if "\\" in str(folder):
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


def _writable(folder: Path) -> list[Finding]:
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


def _place_notes(folder: Path) -> list[str]:
    if any(str(folder).startswith(f"{place}/") for place in _LOCAL):
        return [f"{folder} is on a file system that nodes usually do not share; they must see it"]
    return []


def _bash(script: str) -> list[Finding]:
    """A line of launch.setup may be torn: bash reads the whole script before a node does."""
    said = ask("bash", "-n", text=script)
    if said.code == 0:
        return []
    return [Finding(field="launch.setup", rule="setup-readable", reason=f"bash: {said.reason}")]
