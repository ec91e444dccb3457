"""Checks of the verbs that work on a run that exists; they belong to the table of rules."""

from __future__ import annotations

# Id, what it blames, what must hold, why.
RESUME_CHECKS = (
    (
        "forbidden-on-resume",
        "keys of class forbidden",
        "a resumed run keeps the model's shape and function, and the optimizer",
        "What it has learned means nothing under another value (docs/resume.md).",
    ),
    (
        "run-on-resume",
        "recipe, model=auto",
        "what chooses a whole run is not given to `launch resume`",
        "The run is chosen already; its keys can be changed.",
    ),
)
