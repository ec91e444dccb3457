"""The verb that searches layouts, and what parallelism=auto means."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.commands import Request
from launcher.config.load import Loaded, load_run
from launcher.config.schema import Run
from launcher.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, ConfigError, Finding
from launcher.plan.schedule_choice import check_schedule_file
from launcher.plan.search_auto import fixed_keys, opening_words, suiting_words

if TYPE_CHECKING:
    from launcher.plan.search_advice import Found


def search(request: Request) -> int:
    """Rank all legal layouts; exit code 3 where none fits."""
    from launcher.plan.search_advice import search_layouts
    from launcher.plan.search_report import found_json, render_found

    words = list(request.overrides)
    loaded = _load([*words, *suiting_words(words)], request.config_dirs)
    run = loaded.run
    _require_equal_devices(run)
    if findings := check_schedule_file(run):  # as a plan: what the file decides is typed
        raise ConfigError(findings)
    has_planned = bool(request.flags.get("include_planned"))
    found = search_layouts(run, fixed_keys(words, run), has_planned=has_planned)
    found = _with_typed(found, suiting_words(words))
    folders = [str(folder) for folder in request.config_dirs]
    if request.json:
        print(json_module.dumps(found_json(found, run, words, folders), indent=1))
    else:
        for decision in loaded.decisions:
            print(f"decided     {decision}")
        print(render_found(found, run, words, folders), end="")
    if found.best:
        return EXIT_DONE
    print(_too_large(found.nearest), file=sys.stderr)
    return EXIT_DOES_NOT_FIT


def _with_typed(found: Found, more: Sequence[str]) -> Found:
    """The best change with words that its run needs besides, as a plan of it is typed."""
    if found.best_change is None or not more:
        return found
    typed = dict(word.split("=", 1) for word in more)
    return replace(
        found,
        best_change=replace(found.best_change, overrides=typed | found.best_change.overrides),
    )


def _load(words: Sequence[str], config_dirs: Sequence[Path]) -> Loaded:
    """A recipe's layout is open, too: of its keys none stands against what is typed."""
    try:
        return load_run(words, config_dirs)
    except ConfigError:
        if opened := opening_words(words):
            return load_run([*words, *opened], config_dirs)
        raise


def _require_equal_devices(run: Run) -> None:
    if run.hardware.speeds is not None:
        reason = "the search is for devices of one speed"
        fix = "hardware.speeds=null, or `launch plan` for the layouts that you have in mind"
        raise ConfigError(
            [Finding(field="hardware.speeds", rule="speeds-not-searched", reason=reason, fix=fix)]
        )


def _too_large(nearest: Sequence[object]) -> str:
    tail = " What would fit stands above." if nearest else ""
    return f"does not fit [memory]: no legal layout fits this hardware.{tail}"
