"""The last lines that a user sees of a failed run: who failed first, where, why, what to change."""

from __future__ import annotations

from launcher.failure.diagnosis import diagnose
from launcher.failure.first import Traces, report_of
from launcher.plan.run_files import RunFiles


def explain_failure(files: RunFiles, exit_code: int, log_start: int = 0) -> str:
    """First failure, its cause and remedies; the end of torchrun's log where nobody said a word.

    `log_start` is the byte of torchrun's log at which this attempt begins.
    """
    report = report_of([files.launcher_log], log_start)
    diagnosis = diagnose(Traces(files=files, report=report))
    if diagnosis is None:
        return (
            f"the run failed with exit code {exit_code}\n{_tail(report)}  log: {files.launcher_log}"
        )
    return str(diagnosis)


def _tail(text: str, lines: int = 8) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines()[-lines:])
