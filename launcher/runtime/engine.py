"""Who owns weights, gradients and the update: one narrow interface over data-parallel engines."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from launcher.config.schema import Run
from launcher.plan.records import Layout
from launcher.runtime.groups import Groups
from launcher.runtime.state import StatePiece


class Engine(Protocol):
    """One replica's stage of the model, in training.

    with engine.accumulate():
        for every microbatch: engine.forward(...), engine.backward(...), in any order
    norm = engine.step(learning_rate)
    """

    module: nn.Module
    """The stage, as built."""

    def forward(self, x: Tensor, context: Any) -> Tensor:
        """Output of the stage for a microbatch; on the last stage its loss."""

    def backward(self, output: Tensor | GradientEdge, gradient: Tensor | None) -> None:
        """Add a microbatch's gradients.

        `gradient` is that of the output; None: the output is a loss, of which 1/num_microbatches
        counts towards the mean of the step.
        """

    def accumulate(self) -> AbstractContextManager[None]:
        """Around all microbatches of a step; at its end gradients are summed and averaged.

        An exception inside leaves without any communication, so that it is seen at once.
        """

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; the global gradient norm before clipping."""

    def gradients(self) -> dict[str, Tensor]:
        """Copies in float32 of the rank's gradients by local name, whole over dp, for checks.

        Between `accumulate` and `step`; every rank must call it.
        """

    def weights(self) -> dict[str, Tensor]:
        """Copies in float32 of the rank's weights by local name, whole over dp."""

    def state(self) -> list[StatePiece]:
        """Float32 weights and optimizer state as views on live storage, between two steps.

        In the same order on every rank that holds the same pieces.
        """

    def state_loaded(self, step: int) -> None:
        """After pieces of `state` were overwritten: take them over everywhere.

        `step` updates were made to get there; 0 where only weights are new. Every rank must call
        it.
        """


def adds_up_in_products(run: Run, layout: Layout) -> bool:
    """Whether weight gradients are added up by their products also in a backward in one piece.

    Only the replicated engine in float32 has no hooks on gradients. Compiled blocks and products
    of tensor-parallel ranks have no place for it, and one microbatch has nothing to add to.
    """
    is_replicated = layout.engine != "fsdp2" and layout.zero_stage == 0
    is_plain = layout.tp == 1 and not run.train.compile
    adds = layout.num_microbatches > 1 and run.precision.compute == "fp32"
    return is_replicated and is_plain and adds


def build_engine(
    module: nn.Module, run: Run, layout: Layout, groups: Groups, ds_config: dict[str, Any] | None
) -> Engine:
    """The engine for a layout; every rank must call it, at the same place."""
    if layout.engine == "fsdp2":
        from launcher.runtime.engine_fsdp2 import Fsdp2Engine

        return Fsdp2Engine(module, run, layout, groups)
    if layout.zero_stage == 0:
        from launcher.runtime.engine_replicated import ReplicatedEngine

        return ReplicatedEngine(module, run, layout, groups)
    from launcher.runtime.engine_deepspeed import DeepSpeedEngine  # seconds to import

    assert ds_config is not None
    return DeepSpeedEngine(module, run, layout, groups, ds_config)
