"""What to type for a layout of a search: the user's words, and what makes the layout."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launcher.config.quoting import typed_value
from launcher.config.schema import Run
from launcher.plan.search_auto import suiting_words
from launcher.plan.search_choice import CHOICE_KEYS, TRAIN_KEYS, dotted
from launcher.plan.search_predict import Predicted


def overrides_of(predicted: Predicted, given: Run, typed: Sequence[str]) -> list[str]:
    """What to type behind `launch plan`: the user's words, and what makes this layout."""
    kept = [word for word in typed if not _is_decided(word)]
    run, keys = predicted.run, {_key(word) for word in (*typed, *suiting_words(typed))}
    added = []
    for key in CHOICE_KEYS:
        section = "train" if key in TRAIN_KEYS else "parallelism"
        value = getattr(getattr(run, section), key)
        if dotted(key) in keys or value != getattr(getattr(given, section), key):
            added.append(f"{dotted(key)}={typed_value(value)}")
    for key in ("global_batch_size", "sequence_length"):
        value = getattr(run.train, key)
        if value != getattr(given.train, key):
            added.append(f"train.{key}={value}")
    return kept + added


def remedied(override: str, after: Predicted, given: Run, typed: Sequence[str]) -> list[str]:
    """The same of a layout that fits when this is typed instead of what the user has of its key."""
    words = overrides_of(after, given, [w for w in typed if _key(w) != _key(override)])
    if any(_key(word) == _key(override) for word in words):
        return words
    return [*words, override]


def command(words: Sequence[str], folders: Sequence[str] = ()) -> str:
    """One line for a shell; `folders` have options of the user's own."""
    return " ".join(command_words(words, folders))


def command_words(words: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """The same word by word, quoted."""
    flags = [f"--config-dir={folder}" for folder in folders]
    return ["launch", "plan", *(shlex.quote(word) for word in (*flags, *words))]


def _is_decided(word: str) -> bool:
    key = _key(word)
    decided = {dotted(name) for name in CHOICE_KEYS}
    return key in decided or word == "parallelism=auto"


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
