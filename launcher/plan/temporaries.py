"""What a rank needs for a moment beside what it keeps: in the loss, and in a block's backward."""

from __future__ import annotations

from dataclasses import replace

from launcher.plan.activations import block_kept_bytes, dense_difference_bytes
from launcher.plan.context_memory import attention_temporary_bytes, context_bytes
from launcher.plan.execution import Job
from launcher.plan.operator_records import Size, size_of
from launcher.plan.stages import count_expert_parameters, count_stage_parameters

LOGIT_BYTES = 4
"""The softmax of the logits is made in float32 in every compute type."""


def logit_temporary_bytes(job: Job) -> int:
    """Beside the kept logits while the loss and its gradient are made.

    A fused loss needs nothing; torch's own float32 logits, their log-probabilities and the
    gradient of these.
    """
    size, execution = size_of(job), job.execution
    if execution.fused_loss:
        return 0
    copies = execution.logit_copies
    if execution.cuts_loss_by_dtensor and job.layout.tp > 1:
        copies += 1
    if execution.element_bytes == LOGIT_BYTES:
        copies -= 1
    return copies * LOGIT_BYTES * size.tokens * size.vocabulary


def head_backward_bytes(job: Job) -> int:
    """The head's two gradients, while everything that forward kept is still there.

    Its input's gradient, the input made whole where tokens are cut, and the weight's gradient
    before it is added to the sum.
    """
    size, element = size_of(job), job.execution.element_bytes
    hidden = job.model.hidden_size
    wholes = 2 if size.norm_tokens < size.tokens else 1
    return (wholes * size.tokens + size.vocabulary) * hidden * element


def backward_temporary_bytes(job: Job, again: int | None = None) -> int:
    """What the backward pass of one block needs beside what was kept.

    Gradients of the residual and of the MLP's widest tensors; with recomputation, what the block
    would have kept without it (`again`, where `recomputed_bytes` is known).
    """
    size, model, execution = size_of(job), job.model, job.execution
    ffn = (2 if model.is_gated else 1) * size.ffn
    gradients = size.tokens * (2 * model.hidden_size + ffn) * execution.element_bytes
    context = context_bytes(job)
    if context and execution.row_chunks is not None:  # the MLP's are gone by then
        gradients, context = max(gradients, attention_temporary_bytes(job)), 0
    if execution.keeps_gathered_inputs and size.norm_tokens < size.tokens:
        # What was gathered along tokens is put in order in a second buffer.
        gradients += size.tokens * model.hidden_size * execution.element_bytes
    if not execution.unused_gradients:
        gradients += _new_gradients(job) * execution.element_bytes
    if again is None:
        again = recomputed_bytes(job)
    return gradients + again + _quantised_bytes(job, size) + context


def _new_gradients(job: Job) -> int:
    """Elements of weight gradients that are not in a sum yet: of one product, or, where torch's
    FSDP takes the gradients of a block together, of a block (`post_backward` of its group).
    """
    execution, layout = job.execution, job.layout
    if layout.engine == "fsdp2":  # counted with the group
        return largest_weight(job)
    if execution.torch_pipeline or (execution.weight_bytes == 4 and layout.zero_stage == 3):
        return count_stage_parameters(job.model, 1, False, False, layout.tp, layout.ep)
    return largest_weight(job)


def recomputed_bytes(job: Job) -> int:
    """Of one block, what recomputation makes again for its backward."""
    mode = job.execution.recompute
    if mode == "none":
        return 0
    whole = block_kept_bytes(job, "none") + max(0, dense_difference_bytes(job, "none"))
    if mode == "full":
        return whole
    return max(0, whole - block_kept_bytes(job, mode))


def block_leftover_bytes(job: Job) -> int:
    """Freed memory of a block's pass that the loss cannot use.

    torch's allocator gives a tensor of the logits' size no segments that a block's smaller tensors
    came from, and keeps those. What symmetric memory holds is not the allocator's.
    """
    execution = job.execution
    if execution.overlap_tp and execution.keeps_gathered_inputs:
        job = replace(job, execution=replace(execution, keeps_gathered_inputs=False))
    return block_kept_bytes(job, "none")


def _quantised_bytes(job: Job, size: Size) -> int:
    """8-bit operands of the widest product, each as it is and transposed."""
    if job.execution.matmul != "fp8" or job.hardware.gpu is None:
        return 0
    return 2 * size.tokens * (job.model.hidden_size + size.ffn)


def unused_gradients_bytes(job: Job) -> int:
    """A tensor per weight of a block, and one for the weights of an expert's two products.

    Transformer Engine adds weight gradients to the sums itself and hands autograd an unwritten
    tensor of the weight's shape instead, which it keeps (`get_dummy_wgrad`).
    """
    model, layout = job.model, job.layout
    if not job.execution.unused_gradients:
        return 0
    experts = count_expert_parameters(model, 1, 0, layout.tp, layout.ep)
    elements = count_stage_parameters(model, 1, False, False, layout.tp, layout.ep) - experts
    if model.experts:
        elements += experts // max(1, model.experts.num_experts // layout.ep)
    return elements * job.execution.element_bytes


def largest_weight(job: Job) -> int:
    """Elements of the largest weight of a block on one rank."""
    size, model = size_of(job), job.model
    merged = 2 if model.is_gated and job.execution.fusion == "fused" else 1
    return max(merged * size.ffn, size.queries) * model.hidden_size
