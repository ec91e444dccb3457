"""Writes a rendered bundle to a new run directory; nothing that exists is ever touched."""

from __future__ import annotations

import itertools
import os
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from launcher.errors import SubmissionRefused
from launcher.render.bundle import Bundle


class RunDirTaken(SubmissionRefused):
    """Something is in it: a launch of the same second may have been quicker."""


def new_run_dir(name: str, chosen: str | None) -> Path:
    """Absolute path of the run directory: the chosen one, or runs/<name>-<time>.

    Raises SubmissionRefused for a path that cannot stand in a script.
    """
    if chosen is not None:
        path = Path(os.path.expanduser(chosen)).absolute()
    else:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
        base = Path("runs").absolute() / f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"
        others = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
        path = next(path for path in itertools.chain([base], others) if not path.exists())
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in str(path)):
        raise SubmissionRefused(
            f"--run-dir {str(path)!r} [run-dir-on-one-line]: the path has a control character, and "
            "it is written into scripts. Try another directory."
        )
    return path


def refuse_if_used(root: Path) -> None:
    """Raise SubmissionRefused for a run directory that has something in it."""
    if os.path.lexists(root) and not (root.is_dir() and not any(root.iterdir())):
        raise SubmissionRefused(
            f"--run-dir {root} [run-dir-exists]: it is not empty, and a run never overwrites. "
            "Try another directory."
        )


def write_new(
    bundle: Bundle, name: str, chosen: str | None, render: Callable[[Path], Bundle]
) -> Bundle:
    """`write_bundle`; where another launch of the same second has taken a directory that nobody
    chose, in the next one.
    """
    while True:
        try:
            write_bundle(bundle)
        except RunDirTaken:
            if chosen is not None:
                raise
            bundle = render(new_run_dir(name, None))
        else:
            return bundle


def write_bundle(bundle: Bundle) -> None:
    """Create the run directory and write every file of the bundle.

    Raises RunDirTaken where it has content, SubmissionRefused where it cannot be written.
    """
    root = bundle.files.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise RunDirTaken(
                f"--run-dir {root} [run-dir-exists]: it is not empty, and a run never overwrites. "
                "Try another directory."
            )
        for folder in (bundle.files.logs, bundle.files.checkpoints):
            folder.mkdir()
        for path, text in bundle.texts.items():
            write_text(path, text)
        bundle.script.chmod(0o755)
    except FileExistsError as error:
        raise RunDirTaken(
            f"--run-dir {root} [run-dir-exists]: something else is there, and a run never "
            "overwrites. Try another directory."
        ) from error
    except OSError as error:
        raise SubmissionRefused(
            f"--run-dir {root} [run-dir-not-writable]: {error.strerror}. "
            "Try --run-dir with a directory that can be written."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a name only ever points at a complete file."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
