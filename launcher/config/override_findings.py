"""What can be wrong with an override before its value is looked at, as findings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launcher.config.quoting import hydra_text
from launcher.config.spelling import closest, did_you_mean
from launcher.errors import Finding


def unreadable(line: str, reason: str) -> Finding:
    """Text that Hydra's grammar does not know."""
    key, _, value = line.partition("=")
    typed = shlex.quote(f"{key}={hydra_text(value)}")
    is_assignment = "=" in line and key.strip("+~")
    return Finding(
        field=line,
        rule="override-syntax",
        reason=f"not a Hydra override ({reason})",
        fix=f"{typed}, which takes the value as text" if is_assignment else "key=value",
    )


def unknown_option(group: str, name: str, options: Sequence[str]) -> Finding:
    """An option that the group does not have."""
    close = closest(name, options)
    return Finding(
        field=group,
        value=name,
        rule="unknown-option",
        reason="no such option" + did_you_mean(name, options),
        legal=options,
        fix=f"{group}={close[0]}" if close else "",
    )


def unknown_group(group: str, groups: Sequence[str]) -> Finding:
    """A group that no conf tree has."""
    return Finding(
        field=group,
        rule="unknown-group",
        reason="no such group" + did_you_mean(group, groups),
        legal=groups,
    )


def not_movable(key: str, package: str, is_group: bool) -> Finding:
    """`model@elsewhere=tiny`: the schema has one place for each group."""
    reason = f"the options of {key} belong under {key}" if is_group else f"{key} is not a group"
    return Finding(field=f"{key}@{package}", rule="unknown-package", reason=reason)


def several_options(group: str, options: Sequence[str]) -> Finding:
    """A list where one option is chosen."""
    return Finding(
        field=group,
        rule="one-option",
        reason="a list was given, and one option of a group is chosen",
        legal=options,
    )


def group_not_in_use(group: str, line: str) -> Finding:
    """A group that the chosen options do not have, e.g. hardware/gpu under hardware=local."""
    parent = group.rpartition("/")[0]
    return Finding(
        field=group,
        rule="group-not-in-use",
        reason=f"the chosen option of {parent} has no such group",
        fix=f"+{line.lstrip('+')}",
    )


def sweep_without_m(line: str) -> Finding:
    """A sweep where one run was asked for."""
    return Finding(
        field=line,
        rule="sweep-without-m",
        reason="several values are a sweep, and a sweep needs -m",
        fix=f"-m {line}, or quote the value to keep it one",
    )


def not_ours(key: str) -> Finding:
    """A key of Hydra's own job settings; only the search path has a meaning here."""
    return Finding(
        field=key,
        rule="unknown-key",
        reason="Hydra's own job settings are not used; the run directory is ours",
        legal=["hydra.searchpath"],
        fix="--run-dir DIR",
    )


def not_a_tree(folder: str) -> Finding:
    """A folder of the search path that does not exist."""
    return Finding(
        field="hydra.searchpath", value=folder, rule="no-such-directory", reason="not a folder"
    )
