"""The command line: `launch [VERB] [FLAGS] [HYDRA OVERRIDES]`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher import commands, job_commands, run_commands, search_commands, table_commands
from launcher.config.spelling import closest
from launcher.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_INVALID_CONFIG,
    ConfigError,
    Finding,
    LaunchError,
)
from launcher.flags import build_parser, typed_flag
from launcher.frozen import frozen


@frozen
class Verb:
    """What a verb does and which flags mean something to it."""

    action: Callable[[commands.Request], int]
    flags: frozenset[str]
    """As the parser names them."""
    takes_overrides: bool = True
    operands: tuple[str, ...] = ()
    """Words that it needs before any override, as help names them."""


_CONFIG = frozenset({"config_dir", "cfg", "package", "resolve"})
_VERBS = {
    "run": Verb(action=commands.run, flags=_CONFIG | {"dry_run", "run_dir", "multirun", "wait"}),
    "plan": Verb(action=commands.plan, flags=_CONFIG | {"json", "multirun", "html", "trace"}),
    "search": Verb(action=search_commands.search, flags=_CONFIG | {"json", "include_planned"}),
    "verify": Verb(action=commands.verify, flags=_CONFIG | {"json", "run_dir"}),
    "convert": Verb(
        action=commands.convert,
        flags=frozenset({"to", "step", "dtype", "max_shard_size", "tokenizer"}),
        operands=("SRC", "DST"),
    ),
    "tokenize": Verb(
        action=commands.tokenize, flags=frozenset({"json", "verify"}), takes_overrides=False
    ),
    "resume": Verb(
        action=run_commands.resume,
        flags=frozenset({"config_dir", "dry_run", "from_scratch"}),
        operands=("RUN",),
    ),
    "checkpoints": Verb(
        action=run_commands.checkpoints,
        flags=frozenset({"json", "verify", "diff"}),
        takes_overrides=False,
        operands=("RUN",),
    ),
    "checkpoint": Verb(
        action=run_commands.checkpoint,
        flags=frozenset({"timeout"}),
        takes_overrides=False,
        operands=("RUN",),
    ),
    "status": Verb(
        action=job_commands.status,
        flags=frozenset({"json"}),
        takes_overrides=False,
        operands=("RUN",),
    ),
    "logs": Verb(
        action=job_commands.logs,
        flags=frozenset({"json", "rank", "lines", "follow"}),
        takes_overrides=False,
        operands=("RUN",),
    ),
    "cancel": Verb(
        action=job_commands.cancel,
        flags=frozenset({"json", "now", "timeout"}),
        takes_overrides=False,
        operands=("RUN",),
    ),
    "calibrate": Verb(action=table_commands.calibrate, flags=frozenset()),
    "backtest": Verb(action=table_commands.backtest, flags=frozenset({"json"})),
    "rules": Verb(action=commands.rules, flags=frozenset({"json"}), takes_overrides=False),
}
# `--cfg` prints and stops; `--package` and `--resolve` say what it prints.
_WITH_CFG = _CONFIG | {"multirun"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `launch` command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("interrupted; every process has ended", file=sys.stderr)
        return int(getattr(error, "exit_code", EXIT_INTERRUPTED))
    except BrokenPipeError:
        # The reader of our output is gone (`launch rules | head`); keep Python from saying so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["tokenize"]:
        # It has flags of its own and no overrides.
        line = commands.Request(overrides=(), config_dirs=(), command_line=tuple(words))
        return commands.tokenize(line)
    parser = build_parser()
    parsed = parser.parse_intermixed_args(words)
    if parsed.shell_completion is not None:
        return commands.shell_completion(parsed.shell_completion, list(_VERBS), parser.flags())
    name, rest = _verb(parsed.words)
    verb = _VERBS[name]
    operands, overrides = _split_operands(name, verb, rest)
    _check_flags(name, verb, parsed)
    _check_overrides(name, verb, overrides)
    request = commands.Request(
        overrides=tuple(overrides),
        config_dirs=_paths(parsed.config_dir),
        json=parsed.json,
        dry_run=parsed.dry_run,
        run_dir=parsed.run_dir,
        multirun=parsed.multirun,
        command_line=tuple(words),
        operands=operands,
        flags=vars(parsed),
    )
    if parsed.cfg:
        return commands.show_config(request, parsed.cfg, parsed.package, parsed.resolve)
    return verb.action(request)


def _verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb in front of the overrides; no verb means run."""
    if not words or "=" in words[0] or words[0].startswith("~"):
        return "run", words
    if words[0] in _VERBS:
        return words[0], words[1:]
    near = closest(words[0], sorted(_VERBS))
    raise ConfigError(
        [
            Finding(
                field=words[0],
                rule="unknown-verb",
                reason="neither a verb nor an override (key=value)",
                legal=sorted(_VERBS),
                fix=f"launch {near[0]}" if near else "launch --help",
            )
        ]
    )


def _split_operands(name: str, verb: Verb, words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The words that a verb needs, and the overrides behind them."""
    given = []
    for word in words[: len(verb.operands)]:
        if "=" in word and not os.path.lexists(word) and os.sep not in word.partition("=")[0]:
            break  # an override
        given.append(word)
    if len(given) < len(verb.operands):
        usage = f"launch {name} {' '.join(verb.operands)}"
        missing = " and ".join(verb.operands[len(given) :])
        raise ConfigError(
            [Finding(field=usage, rule="missing-operand", reason=f"{missing} not given")]
        )
    return tuple(given), words[len(given) :]


def _check_flags(name: str, verb: Verb, parsed: argparse.Namespace) -> None:
    """A flag or an override that would be ignored is a mistake."""
    known, shown = verb.flags, f"`launch {name}`"
    if parsed.cfg and "cfg" in verb.flags:
        known, shown = verb.flags & _WITH_CFG, f"`launch {name} --cfg`"
    elif not parsed.cfg:
        known = verb.flags - {"package", "resolve"}
    given = [flag for flag, value in vars(parsed).items() if flag != "words" and _is_given(value)]
    findings = [
        Finding(
            field=typed_flag(flag),
            rule="unused-flag",
            reason=f"{shown} has no such flag",
            legal=[typed_flag(other) for other in sorted(known)],
            fix="--cfg job" if flag in ("package", "resolve") and "cfg" in verb.flags else "",
        )
        for flag in given
        if flag not in known
    ]
    if parsed.verify and parsed.diff and "diff" in verb.flags:
        reason = "--diff compares two checkpoints and verifies none"
        fix = f"launch {name} RUN --verify, then launch {name} RUN --diff A B"
        findings.append(Finding(field="--verify", rule="unused-flag", reason=reason, fix=fix))
    if parsed.timeout is not None and "timeout" in verb.flags and not 0 < parsed.timeout < math.inf:
        findings.append(
            Finding(
                field="--timeout",
                value=parsed.timeout,
                rule="out-of-range",
                reason="seconds to wait must be more than 0",
                fix="--timeout 300",
            )
        )
    if parsed.run_dir == "":
        reason, fix = "the name of the run directory is empty", "--run-dir runs/mine"
        findings.append(
            Finding(field="--run-dir", rule="no-such-directory", reason=reason, fix=fix)
        )
    if findings:
        raise ConfigError(findings)


def _is_given(value: object) -> bool:
    """Whether a flag was typed: 0 is a value, what the parser puts there by itself is not."""
    return value is not None and value is not False and value != []


def _check_overrides(name: str, verb: Verb, overrides: Sequence[str]) -> None:
    if overrides and not verb.takes_overrides:
        reason = f"`launch {name}` takes no overrides"
        raise ConfigError(
            [Finding(field=line, rule="unused-override", reason=reason) for line in overrides]
        )


def _paths(folders: Sequence[str]) -> tuple[Path, ...]:
    findings = [
        Finding(field="--config-dir", value=folder, rule="no-such-directory", reason="not a folder")
        for folder in folders
        if not os.path.isdir(folder)  # Unlike Path.is_dir, it never raises.
    ]
    if findings:
        raise ConfigError(findings)
    return tuple(Path(folder) for folder in folders)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["EXIT_INVALID_CONFIG", "main"]
