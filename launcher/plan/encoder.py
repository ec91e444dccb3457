"""The two sides of an encoder-decoder: which tokens each sees, and the encoder as a job of its own.

The model's blocks are the decoder's; the encoder belongs to the first stage, as the embedding does.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.config.schema import Model
from launcher.plan.execution import Job


def target_length(model: Model, length: int) -> int:
    """Tokens of a sample in the model's own blocks; `length` is the input's."""
    if model.encoder is None:
        return length
    return model.encoder.decoder_length or length


def encoder_job(job: Job) -> Job:
    """The encoder alone, over the input's tokens, every one of which sees all."""
    encoder = job.model.encoder
    assert encoder is not None
    model = job.model.model_copy(update={"encoder": None, "num_layers": encoder.num_layers})
    return replace(job, model=model, execution=replace(job.execution, sees_all=True))


def source_tokens(job: Job) -> int:
    """Input tokens of a microbatch on this rank."""
    layout = job.layout
    return layout.micro_batch_size * layout.sequence_length // layout.cp


def memory_bytes(job: Job) -> int:
    """The encoder's output for one microbatch, which every stage of the decoder reads."""
    if job.model.encoder is None:
        return 0
    tokens = source_tokens(job)
    if job.execution.sequence_parallel:
        tokens = -(-tokens // job.layout.tp)
    return tokens * job.model.hidden_size * job.execution.element_bytes
