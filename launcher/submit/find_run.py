"""Finds the runs that a command line names: by directory, by name, or by the id of their job."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from launcher.config.spelling import closest
from launcher.errors import ConfigError, Finding
from launcher.plan.run_files import RunFiles

_RUNS = Path("runs")
_SHOWN = 5
_JOB = re.compile(r"([0-9]+)(?:_([0-9]+))?")


def find_run(word: str) -> RunFiles:
    """Files of the one run; ConfigError where there is none or the word means several."""
    found = find_runs(word)
    if len(found) > 1:
        names = [str(files.root) for files in found]
        raise ConfigError(
            [
                Finding(
                    field="RUN",
                    value=word,
                    rule="one-run",
                    reason=f"{len(found)} runs are meant, and this is for one",
                    legal=names[:_SHOWN],
                    fix=names[0],
                )
            ]
        )
    return found[0]


def find_runs(word: str) -> list[RunFiles]:
    """Files of the run or, of a sweep, of its runs in their order; ConfigError for none.

    A run directory or the name of one under runs/; a folder of a sweep's runs; the id of a job
    (123), of a sweep's job array (123) or of one of its tasks (123_4).
    """
    given = Path(os.path.expanduser(word))
    for root in (given, _RUNS / word):
        files = RunFiles(root=root.absolute())
        if _is_run(files):
            return [files]
    for root in (given, _RUNS / word):
        if runs := _runs_in(root.absolute()):
            return runs
    if runs := _runs_of_job(word):
        return runs
    raise ConfigError([_no_such_run(word, given)])


def _is_run(files: RunFiles) -> bool:
    # What a resume that was cut off had put aside counts, too.
    return os.path.lexists(files.run) or os.path.isdir(files.attempts)


def _runs_in(folder: Path) -> list[RunFiles]:
    """The runs of a sweep: its folders are numbered."""
    try:
        names = [name for name in os.listdir(folder) if name.isdecimal()]
    except (OSError, ValueError):
        return []
    runs = [RunFiles(root=folder / name) for name in sorted(names, key=int)]
    return [files for files in runs if _is_run(files)]


def _runs_of_job(word: str) -> list[RunFiles]:
    """Runs whose job this is or was: under runs/ first, then where Slurm has its script."""
    match = _JOB.fullmatch(word)
    if match is None:
        return []
    job_id, task = match[1], match[2]
    known = [path.parent for pattern in ("*", "*/*") for path in _glob(f"{pattern}/job.json")]
    runs = [RunFiles(root=root.absolute()) for root in known]
    found = [files for files in runs if _is_of_job(files, job_id, task)]
    return sorted(found or _asked(word), key=_task)


def _is_of_job(files: RunFiles, job_id: str, task: str | None) -> bool:
    record = _record(files.submitted)
    if task is not None and str(record.get("array_task")) != task:
        return False
    behind = record.get("follow_up") or []
    own = {str(record.get("job_id")), *map(str, behind if isinstance(behind, list) else [behind])}
    return job_id in own or any(files.starts.glob(f"{job_id}.*"))


def _asked(word: str) -> list[RunFiles]:
    """What Slurm knows of the script of a job that was submitted elsewhere."""
    from launcher.submit.queue import ask_queue

    scripts = [Path(job.script) for job in ask_queue(word).jobs if job.script]
    if not scripts:
        return []
    root = scripts[0].parent
    runs = [files for files in (RunFiles(root=root), *_runs_in(root)) if _is_run(files)]
    job_id, _, task = word.partition("_")
    return [files for files in runs if _is_of_job(files, job_id, task or None)]


def _task(files: RunFiles) -> int:
    task = _record(files.submitted).get("array_task")
    return task if isinstance(task, int) else -1


def _record(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _glob(pattern: str) -> list[Path]:
    try:
        return list(_RUNS.glob(pattern))
    except OSError:
        return []


def _no_such_run(word: str, given: Path) -> Finding:
    newest = _newest_runs()
    near = closest(Path(word).name, newest)
    if os.path.isdir(given):
        reason = "no run directory: it has no run.yaml"
    elif _JOB.fullmatch(word):
        reason = "no run under runs/ has this job, and Slurm knows no such job of a run"
    else:
        reason = "neither a run directory nor a name under runs/"
    return Finding(
        field="RUN",
        value=word,
        rule="no-such-run",
        reason=reason,
        legal=newest[:_SHOWN],
        fix=str(_RUNS / (near or newest)[0]) if newest else "",
    )


def _newest_runs() -> list[str]:
    """Names of the runs under runs/, newest first."""
    try:
        found = [path.parent for path in _RUNS.glob("*/run.yaml")]
        return [path.name for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]
    except OSError:
        return []
