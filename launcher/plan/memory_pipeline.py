"""What a pipeline holds for its transfers, beside the activations that backward needs."""

from __future__ import annotations

from launcher.plan.activations import head_kept_bytes
from launcher.plan.collectives import boundary_bytes
from launcher.plan.execution import Job
from launcher.plan.records import Layout, Stage


def transfer_bytes(job: Job, stage: Stage, in_flight: int) -> int:
    """Activations and gradients under way between a stage and its neighbours."""
    if job.layout.pp == 1:
        return 0
    if job.execution.torch_pipeline:
        return _torch_pipeline_bytes(job, stage, in_flight)
    # One activation and one gradient, posted early or not yet sent, per neighbour.
    neighbours = (not stage.is_first) + (not stage.is_last)
    return 2 * neighbours * boundary_bytes(job)


def _torch_pipeline_bytes(job: Job, stage: Stage, in_flight: int) -> int:
    """Per microbatch and chunk a buffer to receive into, one for the gradient, and the output.

    Inputs in flight are counted among the activations, and so are the logits of one microbatch.
    """
    layout, each = job.layout, boundary_bytes(job)
    microbatches = layout.num_microbatches
    passes = microbatches * layout.vpp
    receives = max(0, passes - (microbatches if stage.is_first else 0) - in_flight)
    sends = passes - (microbatches if stage.is_last else 0)
    logits = (microbatches - 1) * head_kept_bytes(job) if stage.is_last else 0
    return (receives + 2 * sends) * each + logits


def gradients_of_one_chunk(layout: Layout) -> bool:
    """Whether chunks have their backward passes one after the other: in a single round of
    microbatches, those of a chunk are reduced before those of the next one begin.
    """
    return layout.vpp > 1 and layout.num_microbatches <= layout.pp
