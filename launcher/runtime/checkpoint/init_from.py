"""A run's first weights, where they come from elsewhere (`train.init_from`)."""

from __future__ import annotations

from pathlib import Path

from launcher.config.schema import Run
from launcher.convert.init_from import open_for
from launcher.errors import RunFailed
from launcher.runtime.checkpoint.board import Board
from launcher.runtime.checkpoint.load import load_weights
from launcher.runtime.checkpoint.restore import common_verdict
from launcher.runtime.checkpoint.say import say
from launcher.runtime.engine import Engine


def load_initial_weights(engine: Engine, run: Run, board: Board) -> None:
    """Fill the weights from `train.init_from`, each rank its own parts; every rank must call it.

    Raises ConfigError where they are of another model, RunFailed where a checkpoint is damaged.
    """
    assert run.train.init_from is not None
    weights = open_for(run.model, Path(run.train.init_from))
    if weights.format == "launch":
        reason = common_verdict(weights.folder, board)
        if reason is not None:
            raise RunFailed(f"train.init_from={weights.folder} cannot be trusted: {reason}")
    load_weights(engine, weights.source)
    weights.release()
    if board.rank == 0:
        say(f"starting from the weights in {weights.folder}: {weights.description}")
