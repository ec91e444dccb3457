"""Which keys of a layout the command line has fixed, and the layout of parallelism=auto."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.schema import Run, is_schedule_file
from launcher.plan.search_choice import CHOICE_KEYS, TRAIN_KEYS, dotted

OPEN_GROUPS = ("auto", "3d")
"""Options of `parallelism` that leave the layout to others."""


def fixed_keys(words: Sequence[str], run: Run) -> frozenset[str]:
    """Keys of `Choice` that were typed; a typed parallelism=NAME fixes all that it closes."""
    given = {_split(word)[0]: _split(word)[1] for word in words}
    fixed = {
        key for key in CHOICE_KEYS if given.get(dotted(key), "null") not in ("null", "")
    }  # fmt: skip
    group = given.get("parallelism")
    if group is not None and group not in OPEN_GROUPS:
        fixed |= {
            key
            for key in CHOICE_KEYS
            if key not in TRAIN_KEYS
            and getattr(run.parallelism, key) is not None
            and given.get(dotted(key)) != "null"
        }
    if is_schedule_file(run.parallelism.schedule):
        fixed |= {"schedule", "pp", "vpp", "num_microbatches"}
    if run.parallelism.layers_per_stage is not None:
        fixed |= {"pp", "vpp"}
    return frozenset(fixed)


def suiting_words(words: Sequence[str]) -> list[str]:
    """Chunks for a fixed schedule, or a schedule for fixed chunks, so that the rest may be open."""
    given = dict(_split(word) for word in words)
    schedule, chunks = given.get("parallelism.schedule"), given.get("parallelism.vpp")
    if schedule in ("zb_v", "dualpipev") and chunks is None:
        return ["parallelism.vpp=2"]
    is_open = given.get("parallelism", "auto") == "auto"
    if schedule is None and chunks not in (None, "1", "null") and is_open:
        return ["parallelism.schedule=interleaved_1f1b"]
    return []


def opening_words(words: Sequence[str]) -> list[str]:
    """Degrees and batch of a recipe, opened where nobody has typed them."""
    given = dict(_split(word) for word in words)
    if "recipe" not in given:
        return []
    keys = ("tp", "pp", "dp", *TRAIN_KEYS, "global_batch_size")
    named = [dotted(key) if key != "global_batch_size" else f"train.{key}" for key in keys]
    return [f"{key}=null" for key in dict.fromkeys(named) if key not in given]


def _split(word: str) -> tuple[str, str]:
    key, _, value = word.lstrip("+").partition("=")
    return key, value
