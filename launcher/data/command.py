"""`launch tokenize`: its command line, its progress and its last words."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from launcher.data.documents import Reading
from launcher.data.inputs import KINDS
from launcher.data.pool import usable_cores
from launcher.data.store import damaged_files
from launcher.data.store_info import Unreadable
from launcher.data.tokenize import Job, Outcome, Progress, tokenize
from launcher.data.tokenizer import BYTE
from launcher.errors import EXIT_DONE, EXIT_RUN_FAILED, ConfigError, Finding

_SHOWN = 10  # bad lines


def main(words: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    gc.enable()  # a quick start does without; this may take hours
    parser = _parser()
    parsed = parser.parse_intermixed_args(list(words))
    if not parsed.inputs or (parsed.output is None and not parsed.verify):
        name = "INPUT" if not parsed.inputs else "--output"
        parser.error(f"the following arguments are required: {name}")
    if parsed.verify:
        return _verify(parsed)
    job = Job(
        inputs=tuple(parsed.inputs),
        output=Path(parsed.output),
        tokenizer=parsed.tokenizer,
        end_token=parsed.end_token,
        kind=parsed.format,
        reading=Reading(text_field=parsed.text_field, text_unit=parsed.text_unit),
        workers=parsed.workers or usable_cores(),
        strict=parsed.strict,
    )
    meter = _Meter()
    try:
        outcome = tokenize(job, meter.show)
    except KeyboardInterrupt:
        print("\nfinished parts are kept: the same command goes on", file=sys.stderr)
        raise
    finally:
        meter.end()
    if parsed.json:
        print(json.dumps(_document(outcome), indent=1))
    else:
        print(render_outcome(outcome))
    return EXIT_DONE


def flags() -> list[str]:
    """Long forms of all flags, for completion."""
    return [name for name in _parser()._option_string_actions if name.startswith("--")]


def render_outcome(outcome: Outcome) -> str:
    """What was made and what was left out, and how to train on it."""
    info = outcome.info
    rate = info.num_tokens / max(outcome.seconds, 1e-9)
    lines = [
        f"token store  {outcome.store}",
        f"read         {outcome.num_files:,} files, {outcome.input_bytes:,} bytes",
        f"wrote        {info.num_documents:,} documents, {info.num_tokens:,} tokens ({info.dtype})",
        f"tokenizer    {info.tokenizer.name}, {info.tokenizer.vocab_size:,} ids, documents end "
        f"with {info.tokenizer.end_token}",
        f"took         {outcome.seconds:.1f} s, {rate:,.0f} tokens/s",
    ]
    if outcome.num_kept:
        lines.append(f"kept         {outcome.num_kept} parts of an earlier attempt")
    if outcome.skipped:
        names = ", ".join(str(path) for path in outcome.skipped[:3])
        lines.append(f"not read     {len(outcome.skipped):,} files with other suffixes: {names}")
    lines.append(f"left out     {info.bad_lines:,} bad lines")
    lines += [f"  {line}" for line in outcome.bad[:_SHOWN]]
    if info.bad_lines > _SHOWN:
        lines.append(f"  ... and {info.bad_lines - _SHOWN:,} more")
    vocab_size = info.tokenizer.vocab_size
    lines.append(f"train on it  data=store data.path={outcome.store} model.vocab_size={vocab_size}")
    return "\n".join(lines)


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "store": str(outcome.store),
        **outcome.info.to_json(),
        "bad": [str(line) for line in outcome.bad],
        "num_files": outcome.num_files,
        "input_bytes": outcome.input_bytes,
        "skipped": [str(path) for path in outcome.skipped],
        "kept_parts": outcome.num_kept,
        "seconds": outcome.seconds,
    }


def _verify(parsed: argparse.Namespace) -> int:
    """Read every byte of finished stores and compare checksums."""
    verdicts: dict[str, str | None] = {}
    for store in parsed.inputs:
        try:
            wrong = damaged_files(Path(store))
            verdicts[store] = f"damaged: {', '.join(wrong)}" if wrong else None
        except Unreadable as error:
            verdicts[store] = str(error)
    if parsed.json:
        stores = [{"store": store, "reason": reason} for store, reason in verdicts.items()]
        print(json.dumps({"stores": stores}, indent=1))
    else:
        for store, reason in verdicts.items():
            print(f"{store}: {reason or 'whole'}")
    return EXIT_RUN_FAILED if any(verdicts.values()) else EXIT_DONE


class _Meter:
    """One line that is written over, on a terminal only."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None
        self._is_open = False

    def show(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            return
        if self._first is None:
            self._first = progress.done_bytes
        elapsed = time.monotonic() - self._started
        share = progress.done_bytes / max(1, progress.total_bytes)
        speed = (progress.done_bytes - self._first) / max(elapsed, 1e-9)
        left = (progress.total_bytes - progress.done_bytes) / speed if speed else None
        text = (
            f"{share:6.1%}  {progress.num_documents:,} documents  {progress.num_tokens:,} tokens"
            f"  {speed / 1e6:.1f} MB/s" + ("" if left is None else f"  {left:.0f} s left")
        )
        if progress.num_bad:
            text += f"  {progress.num_bad:,} bad lines"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        self._is_open = True

    def end(self) -> None:
        if self._is_open:
            print(file=sys.stderr)
        self._is_open = False


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are findings."""

    def error(self, message: str) -> NoReturn:
        fix, unknown = "launch tokenize --help", "unrecognized arguments: "
        if message.startswith(unknown):
            flag = message.removeprefix(unknown).split(" ")[0]
            finding = Finding(field=flag, rule="unknown-flag", reason="no such flag", fix=fix)
        else:
            finding = Finding(
                field="launch tokenize", rule="tokenize-usage", reason=message, fix=fix
            )
        raise ConfigError([finding])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def _parser() -> _Parser:
    parser = _Parser(
        prog="launch tokenize",
        description="Make a token store of text, JSONL (.gz, .zst), Parquet and saved data sets "
        "of Hugging Face. A command that was interrupted goes on where it was.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="files, folders and quoted globs")
    add("--output", "-o", metavar="DIR", help="the store's folder; must not exist")
    add(
        "--tokenizer",
        default=BYTE,
        metavar="FILE",
        help="a tokenizer.json or its folder; byte (default): a token per byte and 256 for the end",
    )
    add("--end-token", metavar="TOKEN", help="ends every document (default: the usual names)")
    add("--format", choices=KINDS, help="read all files as this (default: by their suffix)")
    add("--text-field", default="text", metavar="NAME", help="JSON field or column (default: text)")
    add("--text-unit", default="file", choices=("file", "line"), help="a document in plain text")
    add("--workers", type=_positive, metavar="N", help="processes (default: one per core)")
    add("--strict", action="store_true", help="a bad line ends it (default: counted and named)")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--verify", action="store_true", help="check the checksums of stores, the INPUTs, and stop")
    return parser
