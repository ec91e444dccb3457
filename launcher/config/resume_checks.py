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
    (
        "no-such-run",
        "RUN",
        "RUN is a run directory or the name of one under runs/",
        "A typo must not start anything.",
    ),
    (
        "run-readable",
        "run.yaml",
        "the frozen configuration of a run can be read and is a run",
        "Nothing is guessed of a run that is to continue.",
    ),
    (
        "never-saved",
        "checkpoints",
        "a run that is resumed has saved, or --from-scratch is given",
        "A run never starts from scratch in silence.",
    ),
    (
        "no-readable-checkpoint",
        "checkpoints",
        "a run that has saved has a checkpoint that verifies",
        "Losing all progress is never the silent answer to a damaged file.",
    ),
    (
        "nothing-to-do",
        "train.steps",
        "a resumed run has steps left",
        "What was overridden would have no effect.",
    ),
    (
        "run-in-use",
        "RUN",
        "one command and one job work in a run directory",
        "Two would write the same files.",
    ),
    (
        "not-running",
        "RUN",
        "`launch checkpoint` asks a job that runs",
        "Nobody would answer.",
    ),
    (
        "no-such-checkpoint",
        "--diff",
        "a checkpoint is named by its step, its folder or latest",
        "A typo must not compare something else.",
    ),
    (
        "checkpoint-readable",
        "--diff",
        "the checkpoints that are compared can be read",
        "Nothing is guessed of a damaged file.",
    ),
    (
        "checkpoints-fit-disk",
        "checkpoint.keep",
        "the predicted checkpoints fit on the disk of the run directory",
        "A full disk after a week costs the week.",
    ),
    ("missing-operand", "command line", "a verb has its operands", "Nothing is guessed."),
)
