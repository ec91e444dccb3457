"""What a Slurm cluster says of itself: partitions, their nodes and GPUs, accounts."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass

from launcher.config.slurm_time import slurm_seconds
from launcher.submit.slurm_ask import Said, ask

_OUT_OF_USE = ("down", "drain", "fail", "boot", "unk", "maint", "inval", "no_respond")


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one partition that are alike."""

    count: int
    gpus: tuple[tuple[str, int], ...]
    """Type and number; the type is empty where the site names none."""
    is_usable: bool


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition."""

    name: str
    is_default: bool
    is_up: bool
    time_limit: str
    groups: tuple[NodeGroup, ...]

    @property
    def seconds(self) -> int | None:
        """Of its time limit; None where it has none."""
        return slurm_seconds(self.time_limit)

    @property
    def num_nodes(self) -> int:
        """All of them, usable now or not."""
        return sum(group.count for group in self.groups)

    def nodes_with(self, gpu_type: str, count: int) -> int:
        """Nodes with so many GPUs; of a type, where one is named."""
        return sum(group.count for group in self.groups if _has(group, gpu_type, count))


def read_partitions() -> tuple[list[Partition], Said]:
    """All partitions, and what sinfo said."""
    said = ask("sinfo", "-h", "-a", "-o", "%P|%a|%l|%D|%T|%G")
    found: dict[str, Partition] = {}
    for line in said.out.splitlines():
        parts = line.split("|", 5)
        if len(parts) < 6 or not parts[3].isdecimal():
            continue
        shown, available, limit, count, state, gres = parts
        name = shown.rstrip("*")
        group = NodeGroup(
            count=int(count),
            gpus=read_gpus(gres),
            is_usable=not state.lower().startswith(_OUT_OF_USE),
        )
        before = found[name].groups if name in found else ()
        found[name] = Partition(
            name=name,
            is_default=shown.endswith("*"),
            is_up=available == "up",
            time_limit=limit,
            groups=(*before, group),
        )
    return list(found.values()), said


def read_gpus(gres: str) -> tuple[tuple[str, int], ...]:
    """GPUs of a node.  read_gpus("gpu:h100:8(S:0-1),fs:1") -> (("h100", 8),)"""
    found = re.findall(r"(?:^|,)gpu(?::([^:,(]*[^:,(0-9][^:,(]*))?:([0-9]+)", gres)
    return tuple((kind, int(count)) for kind, count in found)


def read_associations() -> dict[str, set[str]] | None:
    """Account -> qualities of service of this user; None where the site does not say."""
    said = ask("sacctmgr", "-n", "-P", "show", "assoc", "where", f"user={getpass.getuser()}",
               "format=account,qos")  # fmt: skip
    if said.code != 0:
        return None
    found: dict[str, set[str]] = {}
    for line in said.out.splitlines():
        account, sign, qos = line.partition("|")
        if sign and account:
            found.setdefault(account, set()).update(name for name in qos.split(",") if name)
    return found or None


def enforces_associations() -> bool:
    """Whether Slurm refuses accounts that it does not know."""
    said = ask("scontrol", "show", "config")
    line = re.search(r"AccountingStorageEnforce\s*=\s*(.*)", said.out)
    return bool(line and "associations" in line[1])


def _has(group: NodeGroup, gpu_type: str, count: int) -> bool:
    return sum(number for kind, number in group.gpus if not gpu_type or kind == gpu_type) >= count
