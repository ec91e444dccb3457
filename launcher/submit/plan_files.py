"""Files that `launch plan` writes where it is told to: the page and the trace.

A file is replaced only where an earlier plan wrote it, so that a slip of the keyboard
(`--html train.py`) destroys nothing. It is whole or not there: a new one takes its name at the end.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ConfigError, Finding
from launcher.plan.records import Plan
from launcher.render.page import GENERATOR as PAGE_MARK
from launcher.render.page import render_page
from launcher.render.trace import GENERATOR as TRACE_MARK
from launcher.render.trace import render_trace

HEAD_BYTES = 1024
"""How far into a file its mark may be."""


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """One file that was asked for."""

    flag: str
    """As typed: --html or --trace."""
    path: str
    mark: str
    """Text in the head of a file that is ours."""
    render: Callable[[Plan], str]


def plan_files(html: str | None, trace: str | None) -> tuple[PlanFile, ...]:
    """The files that the flags name."""
    wanted = (
        ("--html", html, PAGE_MARK, render_page),
        ("--trace", trace, TRACE_MARK, render_trace),
    )
    return tuple(
        PlanFile(flag=flag, path=os.path.expanduser(path), mark=mark, render=render)
        for flag, path, mark, render in wanted
        if path is not None
    )


def check_files(files: Sequence[PlanFile], num_plans: int) -> list[Finding]:
    """Every reason why a file could not be written, before anything is."""
    findings = [finding for file in files if (finding := _check(file))]
    if num_plans > 1:
        reason = f"a sweep of {num_plans} has as many plans, and this is the name of one file"
        findings += [
            Finding(field=file.flag, value=file.path, rule="one-plan-per-file", reason=reason)
            for file in files
        ]
    elif len({os.path.realpath(file.path) for file in files if "\0" not in file.path}) < len(files):
        last = files[-1]
        reason = f"{files[0].flag} names the same file"
        findings.append(
            Finding(field=last.flag, value=last.path, rule="one-plan-per-file", reason=reason)
        )
    return findings


def write_files(files: Sequence[PlanFile], plan: Plan) -> list[Path]:
    """Render and write; ConfigError where the disk says no after all. Returns absolute paths."""
    written = []
    for file in files:
        text = file.render(plan)
        target = Path(os.path.realpath(file.path))
        try:
            _replace(target, text)
        except OSError as error:
            raise ConfigError([_unwritable(file, error)]) from error
        written.append(target)
    return written


def _check(file: PlanFile) -> Finding | None:
    return check_target(file.flag, file.path, file.mark, f"launch plan {file.flag}")


def check_target(flag: str, path: str, mark: str, writer: str) -> Finding | None:
    """Why a file that was asked for could not be written, or is not `writer`'s to replace."""

    def finding(rule: str, reason: str, fix: str = "") -> Finding:
        return Finding(field=flag, value=path, rule=rule, reason=reason, fix=fix)

    if not path:
        return finding("no-such-directory", "the name of the file is empty")
    try:
        target = os.path.realpath(path)
        folder = os.path.dirname(target)
        if not os.path.isdir(folder):
            return finding("no-such-directory", f"{folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            return finding("file-not-writable", f"{folder} cannot be written to")
        if not stat.S_ISREG(os.stat(target).st_mode):
            return finding("file-exists", "it is there, and it is not a file")
        with open(target, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        return finding("file-not-writable", error.strerror or str(error))
    except ValueError:
        return finding("file-not-writable", "the name has a null character")
    if head and mark.encode() not in head:
        return finding("file-exists", f"it is there, and no `{writer}` wrote it", "another name")
    return None


def _unwritable(file: PlanFile, error: OSError) -> Finding:
    reason = error.strerror or str(error)
    return Finding(field=file.flag, value=file.path, rule="file-not-writable", reason=reason)


def _replace(target: Path, text: str) -> None:
    """Write beside the target, then rename; nothing half-written, nothing left behind."""
    handle, partial = tempfile.mkstemp(prefix=".launch-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        os.chmod(partial, _mode(target))
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def _mode(target: Path) -> int:
    """That of the file that is replaced, or what the user's umask leaves of rw-rw-rw-."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
