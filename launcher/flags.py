"""The flags of the command line, and what is said of one that does not exist."""

from __future__ import annotations

import argparse

from launcher import __version__
from launcher.commands import group_names
from launcher.config.spelling import closest, did_you_mean
from launcher.errors import ConfigError, Finding

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
  calibrate [FILE]  measure kernels and exchanges here; plans use them by hardware.kernels=FILE
  tokenize text, JSONL, Parquet or a saved data set to a token store (launch tokenize --help)
  backtest predict every measured run of a table (FILE.csv) and say how far off that is
  rules    every rule that a configuration must obey, with its reason

overrides (Hydra)
  model=llama3_8b                choose an option of a group
  train.steps=100                set a key
  ~train.seed  +key=value        delete, add
  -m train.seed=1,2              one run per combination

groups: """


def typed_flag(name: str) -> str:
    """As it is typed.  typed_flag("run_dir") -> "--run-dir"."""
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise ConfigError with the flag and what is wrong with it."""
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        if message.startswith("argument "):  # A flag that exists, with a wrong value.
            flag, _, reason = message.removeprefix("argument ").partition(": ")
            fix = "launch --help"
            raise ConfigError(
                [Finding(field=flag.split("/")[0], rule="flag-value", reason=reason, fix=fix)]
            )
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
        """Verbs, overrides and groups, then the flags."""
        groups = sorted(group_names())
        return (
            f"usage: {_USAGE}{', '.join(groups)}\n\n" + super().format_help().partition("\n\n")[2]
        )


def build_parser() -> Parser:
    """The parser of every verb's flags; a verb refuses those that mean nothing to it."""
    parser = Parser(prog="launch", usage="launch [VERB] [FLAGS] [OVERRIDES]", allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="run, resume: print the exact script and stop")
    add("--wait", action="store_true", help="run with launch=slurm: follow the job to its end")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--run-dir", metavar="DIR", help="run directory (default: runs/<name>-<time>)")
    add("--include-planned", action="store_true", help="search: offload as well")
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
    add("--lines", metavar="N", type=int, help="logs: last lines of each, 0 for all (20)")
    add("--follow", "-f", action="store_true", help="logs: and what is written from now on")
    add("--shell-completion", "-sc", metavar="install=SHELL", help="bash, zsh or fish completion")
    add("--version", action="version", version=f"launch {__version__}")
    return parser
