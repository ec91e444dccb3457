"""Everything that would fail a Slurm job and can be seen before it waits: all findings at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.config.slurm_time import slurm_seconds
from launcher.errors import Finding, SubmissionRefused
from launcher.plan.records import Plan
from launcher.submit.cluster import (
    Partition,
    enforces_associations,
    read_associations,
    read_partitions,
)
from launcher.submit.preflight_here import (
    around_the_workers,
    place_notes,
    readable_script,
    writable,
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
        findings += around_the_workers(plan, folder)
        if finding := disk_finding(plan, folder, first_step, len(plans)):
            findings.append(finding)
    findings += writable(folders[0])
    report.notes.extend(place_notes(folders[0]))
    findings += readable_script(script)
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
    own = [*_partition_findings(plan, partitions, report), *_account_findings(plan, report)]
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


def _partition_findings(
    plan: Plan, partitions: Sequence[Partition], report: Report
) -> Iterator[Finding]:
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
    found = [list(_one_partition(plan, partition, partitions)) for partition in chosen]
    if all(found):
        for findings in found:
            yield from findings
    else:  # Slurm takes the one that can.
        report.notes.extend(str(finding) for findings in found for finding in findings)


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
