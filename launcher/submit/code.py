"""Records which code was planned: commit, changes and a digest of the launcher's own files."""

from __future__ import annotations

import hashlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from launcher import __version__
from launcher.node.code import PACKAGE, package_digest
from launcher.node.records import write_record
from launcher.plan.run_files import RunFiles
from launcher.submit.write import write_text

_GIT_S = 20.0
_LARGEST_PATCH = 50 * 2**20


@dataclass(frozen=True, kw_only=True)
class Code:
    """What git says of the launcher's folder."""

    commit: str | None
    """None: an installed package, or no git here."""
    patch: str = ""
    """Changes of tracked files against the commit. Files that git does not track are never read:
    secrets lie in such files."""
    untracked: tuple[str, ...] = ()
    """Python files of the launcher that the commit does not know, by name."""


def read_code(package: Path = PACKAGE) -> Code:
    """Commit and changes of a checkout; a commit of None for anything else."""
    commit = _git(package, "rev-parse", "HEAD")
    # A package that merely lies inside somebody's repository, e.g. in its .venv, is not its code.
    if commit is None or not _git(package, "ls-files", "--", "__init__.py"):
        return Code(commit=None)
    # --no-ext-diff, --no-textconv: the user's own viewers would write something else.
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    patch = _git(package, "diff", *options, "HEAD", "--", str(package))
    untracked = _git(package, "ls-files", "--others", "--exclude-standard", "--", "*.py") or ""
    return Code(commit=commit.strip(), patch=patch or "", untracked=tuple(untracked.splitlines()))


def describe_code(package: Path = PACKAGE) -> str:
    """A few words for the head of a script.

    "commit 1234abcd5678, changed (patch 89abcdef0123)", or "launch 0.1.0"
    """
    code = read_code(package)
    if code.commit is None:
        return f"launch {__version__}"
    words = f"commit {code.commit[:12]}"
    if code.patch:
        words += f", changed (patch {_sha256(code.patch)[:12]})"
    if code.untracked:
        words += f", {len(code.untracked)} new files"
    return words


def record_code(files: RunFiles, package: Path = PACKAGE) -> None:
    """Write code.json, and code.patch where files were changed."""
    code = read_code(package)
    is_kept = bool(code.patch) and len(code.patch) <= _LARGEST_PATCH
    if is_kept:
        write_text(files.code_patch, code.patch)
    else:
        files.code_patch.unlink(missing_ok=True)
    document = {
        "version": __version__,
        "package": str(package),
        "package_sha256": package_digest(package),
        "commit": code.commit,
        "dirty": bool(code.patch or code.untracked),
        "patch": files.code_patch.name if is_kept else None,
        "patch_sha256": _sha256(code.patch) if code.patch else None,
        "untracked": list(code.untracked),
        "recorded_at": time.time(),
    }
    write_record(files.code, document)


def _git(package: Path, *words: str) -> str | None:
    """What git says in the folder; None where it cannot."""
    try:
        done = subprocess.run(
            ["git", "-C", str(package), *words],
            capture_output=True,
            timeout=_GIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode("utf-8", errors="surrogateescape")
    return text if done.returncode == 0 else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
