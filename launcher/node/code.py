"""Is the code that runs the code that was planned?"""

from __future__ import annotations

import hashlib
from pathlib import Path

from launcher.node.records import read_record
from launcher.plan.run_files import RunFiles

PACKAGE = Path(__file__).resolve().parent.parent


def package_digest(package: Path = PACKAGE) -> str:
    """sha256 of every Python file of the launcher, names included."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def changed_code(files: RunFiles, package: Path = PACKAGE) -> str | None:
    """A sentence where the code here is not the one that was submitted; None where it is.

    Of a run without a record nothing is said.
    """
    record = read_record(files.code)
    if record is None or "package_sha256" not in record:
        return None
    here = package_digest(package)
    if here == record["package_sha256"]:
        return None
    commit = record.get("commit")
    planned = f"commit {commit[:12]}" if isinstance(commit, str) else "version "
    planned += "" if isinstance(commit, str) else str(record.get("version"))
    return (
        f"CHANGED CODE: this job runs {package}, which is not what was submitted ({planned}, "
        f"sha256 {record['package_sha256'][:12]} then, {here[:12]} now); see {files.code}"
    )
