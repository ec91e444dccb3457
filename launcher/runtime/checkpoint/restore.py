"""What a starting job continues from: the newest checkpoint that verifies, never silently none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoint.manifest import Malformed
from launcher.checkpoint.publish import clean, name_latest, set_aside
from launcher.checkpoint.reader import Checkpoint, Refusal, list_checkpoints, verify_files
from launcher.errors import RunFailed
from launcher.plan.run_files import RunFiles
from launcher.runtime.checkpoint.board import PATIENCE_S, Board
from launcher.runtime.checkpoint.load import load_checkpoint
from launcher.runtime.checkpoint.say import say
from launcher.runtime.engine import Engine
from launcher.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where training begins."""

    progress: Progress = field(default_factory=Progress)
    consumed_tokens: int = 0
    number: int = 0
    """Checkpoints that the run has made so far."""
    name: str | None = None
    """Of the checkpoint; None: from the beginning."""
    refused: tuple[Refusal, ...] = ()
    """Newer checkpoints that do not verify."""
    missing: tuple[str, ...] = ()
    """Kinds of optimizer state that start from zero."""


def restore(engine: Engine, files: RunFiles, board: Board) -> Start:
    """Load the newest checkpoint that verifies into the engine; every rank must call it.

    Raises RunFailed where the run has saved before and nothing of it can be used.
    """
    if board.rank == 0:
        clean(files.checkpoints)
        board.put("candidates", list_checkpoints(files.checkpoints))
    (candidates,) = board.wait(["candidates"], PATIENCE_S)
    refused: list[Refusal] = []
    for name in candidates:
        reason = common_verdict(files.checkpoints / name, board)
        if reason is None:
            return _continue_from(name, refused, engine, files, board)
        refused.append(Refusal(name=name, reason=reason))
        if board.rank == 0:
            say(f"checkpoint {name} is refused: {reason}")
    if refused or files.has_saved.exists():
        raise RunFailed(_nothing_usable(files, refused))
    if board.rank == 0 and files.metrics.exists() and files.metrics.stat().st_size:
        say("the run ended before its first checkpoint: it starts again from the beginning")
    return Start()


def common_verdict(folder: Path, board: Board) -> str | None:
    """Whether all ranks together find a checkpoint whole: each reads its share of the files."""
    reason = None
    try:
        checkpoint = Checkpoint(folder)
        mine = sorted(checkpoint.manifest.files)[board.rank :: board.world_size]
        reason = verify_files(checkpoint, mine)
    except Malformed as error:
        reason = f"manifest.json: {error}"
    keys = [f"verify.{folder.name}.{rank}" for rank in range(board.world_size)]
    board.put(keys[board.rank], reason)
    verdict = f"verdict.{folder.name}"
    if board.rank == 0:
        reasons = [found for found in board.wait(keys, PATIENCE_S) if found is not None]
        board.put(verdict, reasons[0] if reasons else None)
    (agreed,) = board.wait([verdict], PATIENCE_S)
    return None if agreed is None else str(agreed)


def _continue_from(
    name: str, refused: list[Refusal], engine: Engine, files: RunFiles, board: Board
) -> Start:
    checkpoint = Checkpoint(files.checkpoints / name)
    manifest = checkpoint.manifest
    missing = load_checkpoint(engine, checkpoint)
    if board.rank == 0:
        # Out of the way: what follows makes new checkpoints of these steps.
        for refusal in refused:
            set_aside(files.checkpoints, refusal.name, refusal.reason)
        name_latest(files.checkpoints, name)
        say(f"continuing from checkpoint {name}: {manifest.step} steps done")
        for kind in missing:
            say(f"the checkpoint has no {kind}: it starts from zero")
    return Start(
        progress=Progress(step=manifest.step, consumed_samples=manifest.consumed_samples),
        consumed_tokens=manifest.consumed_tokens,
        number=manifest.number,
        name=name,
        refused=tuple(refused),
        missing=tuple(missing),
    )


def _nothing_usable(files: RunFiles, refused: list[Refusal]) -> str:
    reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused[:4])
    found = f"none of those in {files.checkpoints} can be used ({reasons})"
    if not refused:
        found = f"{files.checkpoints} has none"
    return (
        f"the run has saved checkpoints, but {found}. Put a good copy of a checkpoint back there; "
        f"or start from the beginning: `launch resume {files.root} --from-scratch` puts the past "
        "aside"
    )
