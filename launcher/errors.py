"""What can go wrong, said once: findings with field, value, reason and fix, and the exit codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.frozen import frozen

EXIT_DONE = 0
EXIT_RUN_FAILED = 1
EXIT_INVALID_CONFIG = 2
EXIT_DOES_NOT_FIT = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130


@frozen
class Finding:
    """One mistake, complete enough to be mended without reading any code."""

    field: str
    """Dotted key as the user would type it, e.g. `parallelism.tp`."""
    rule: str
    """Stable id, e.g. `tp-divides-heads`; scripts may rely on it."""
    reason: str
    """A sentence without its final stop."""
    value: object = None
    """What was given; None where the key itself is the mistake."""
    legal: Sequence[object] = ()
    """Values that would pass here, smallest first; empty where they cannot be listed."""
    fix: str = ""
    """Something that can be typed as it is, e.g. `parallelism.tp=4`."""

    def __str__(self) -> str:
        """`parallelism.tp=6 [tp-divides-heads]: 6 does not divide ... Legal here: 1, 2. Try ...`"""
        head = self.field if self.value is None else f"{self.field}={self.value}"
        stop = "" if self.reason.endswith("?") else "."
        text = f"{head} [{self.rule}]: {self.reason}{stop}"
        if self.legal:
            text += f" Legal here: {', '.join(str(value) for value in self.legal)}."
        if self.fix:
            text += f" Try {self.fix}."
        return visible(text)


def visible(text: str) -> str:
    """The text without anything that a terminal would obey or cannot show: a newline escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class LaunchError(Exception):
    """Base of every error that a user may see; carries the exit code of the command."""

    exit_code = EXIT_RUN_FAILED


class ConfigError(LaunchError):
    """The configuration is invalid; every finding at once."""

    exit_code = EXIT_INVALID_CONFIG

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


class DoesNotFit(LaunchError):
    """The configuration is valid, but the hardware has too little memory for it."""

    exit_code = EXIT_DOES_NOT_FIT


class SubmissionRefused(LaunchError):
    """The job is right, but it cannot be submitted from here."""

    exit_code = EXIT_REFUSED


class RunFailed(LaunchError):
    """The job was started and ended badly."""

    exit_code = EXIT_RUN_FAILED
