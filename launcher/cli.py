"""The command line: `launch [VERB] [FLAGS] [HYDRA OVERRIDES]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import (
    __version__,
    commands,
    job_commands,
    run_commands,
    search_commands,
    table_commands,
)
from launcher.config.spelling import closest, did_you_mean
from launcher.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_INVALID_CONFIG,
    ConfigError,
    Finding,
    LaunchError,
)

_USAGE = """launch [VERB] [FLAGS] [OVERRIDES]

verbs
  run      check, plan, write the run directory, start the job and follow it (default)
  plan     check and predict only
  search   the best layouts for this model on this hardware, by prediction
  verify   train a shrunk model in the same layout on CPU processes and in one process; compare
  convert SRC DST   weights to and from Hugging Face safetensors
  status RUN        queued, running, requeued, done or failed, and why; what to change
  logs RUN          the ends of the logs that matter
  cancel RUN        have the job save and end; it does not start again
  resume RUN        continue a run, with other values where overrides say so
  checkpoints RUN   list, verify or compare the checkpoints of a run
  checkpoint RUN    have a running job save now
  calibrate [FILE]  measure this machine's kernels; plans use the table by hardware.kernels=FILE
  tokenize text, JSONL, Parquet or a saved data set to a token store (launch tokenize --help)
  backtest predict every measured run of a table (FILE.csv) and say how far off that is
  rules    every rule that a configuration must obey, with its reason

overrides (Hydra)
  model=llama3_8b                choose an option of a group
  train.steps=100                set a key
  ~train.seed  +key=value        delete, add
  -m train.seed=1,2              one run per combination

groups: """


@dataclass(frozen=True, kw_only=True)
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
    "run": Verb(action=commands.run, flags=_CONFIG | {"dry_run", "run_dir", "multirun"}),
    "plan": Verb(action=commands.plan, flags=_CONFIG | {"json", "multirun", "html", "trace"}),
    "search": Verb(action=search_commands.search, flags=_CONFIG | {"json"}),
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
    parser = _parser()
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
    given = [flag for flag, value in vars(parsed).items() if flag != "words" and value]
    findings = [
        Finding(
            field=_typed(flag),
            rule="unused-flag",
            reason=f"{shown} has no such flag",
            legal=[_typed(other) for other in sorted(known)],
            fix="--cfg job" if flag in ("package", "resolve") and "cfg" in verb.flags else "",
        )
        for flag in given
        if flag not in known
    ]
    if parsed.run_dir == "":
        reason = "the name of the run directory is empty"
        findings.append(Finding(field="--run-dir", rule="no-such-directory", reason=reason))
    if findings:
        raise ConfigError(findings)


def _check_overrides(name: str, verb: Verb, overrides: Sequence[str]) -> None:
    if overrides and not verb.takes_overrides:
        reason = f"`launch {name}` takes no overrides"
        raise ConfigError(
            [Finding(field=line, rule="unused-override", reason=reason) for line in overrides]
        )


def _typed(flag: str) -> str:
    return "--" + flag.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        near = closest(unknown, self.flags())
        raise ConfigError(
            [
                Finding(
                    field=unknown or "command line",
                    rule="unknown-flag",
                    reason=f"no such flag{did_you_mean(unknown, near)}" if unknown else message,
                    fix="" if near else "launch --help",
                )
            ]
        )

    def flags(self) -> list[str]:
        """Long forms of all flags."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def format_help(self) -> str:
        groups = sorted(commands.group_names())
        return (
            f"usage: {_USAGE}{', '.join(groups)}\n\n" + super().format_help().partition("\n\n")[2]
        )


def _parser() -> _Parser:
    parser = _Parser(prog="launch", usage="launch [VERB] [FLAGS] [OVERRIDES]", allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="run, resume: print the exact script and stop")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--run-dir", metavar="DIR", help="run directory (default: runs/<name>-<time>)")
    add("--html", metavar="FILE", help="plan: also write it as a page for a browser")
    add("--trace", metavar="FILE", help="plan: also write the step's timeline, for ui.perfetto.dev")
    add("--config-dir", "-cd", metavar="DIR", action="append", default=[], help="own conf tree")
    add("--multirun", "-m", action="store_true", help="one run per combination of swept values")
    add("--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed configuration")
    add("--package", "-p", metavar="KEY", help="--cfg: only this part")
    add("--resolve", action="store_true", help="--cfg: with interpolations resolved")
    add("--to", choices=("hf", "launch"), help="convert: to this format (default: the other)")
    add("--step", metavar="N", type=int, help="convert: checkpoint of a run (default: the newest)")
    add("--dtype", choices=("float32", "bfloat16"), help="convert: to hf in this (float32)")
    add("--max-shard-size", metavar="SIZE", help="convert: largest file (5GB)")
    add("--tokenizer", metavar="DIR", help="convert: to hf with the tokenizer files in it")
    add("--from-scratch", action="store_true", help="resume: put the past aside and start again")
    add("--verify", action="store_true", help="checkpoints: read every file and compare checksums")
    add("--diff", nargs=2, metavar="STEP", help="checkpoints: what differs between two of them")
    add("--timeout", metavar="S", type=float, help="checkpoint, cancel: seconds to wait (300)")
    add("--now", action="store_true", help="cancel: end at once, without saving")
    add("--rank", metavar="N", type=int, help="logs: of this rank alone")
    add(
        "--lines", metavar="N", type=int, help="logs: so many of each log's last lines, 0: all (20)"
    )
    add("--follow", "-f", action="store_true", help="logs: and all that is written from now on")
    add("--shell-completion", "-sc", metavar="install=SHELL", help="bash, zsh or fish completion")
    add("--version", action="version", version=f"launch {__version__}")
    return parser


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
