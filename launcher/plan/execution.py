"""How the software runs a layout: kernels, number formats, sharding and overlap, as plain facts.

The plan of a run uses `runtime_execution`; a measured run of another program says its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.config.schedule_facts import splits_backward
from launcher.config.schema import Hardware, Model, Optimizer, Run, is_schedule_file
from launcher.frozen import frozen
from launcher.plan.records import Layout

Attention = Literal["matrix", "triton", "flash", "cudnn"]
"""matrix: the S x S scores are written out; triton: FlashAttention 1 in Triton; flash: its second
version; cudnn: cuDNN's or its third version's, which use what Hopper and Blackwell added."""

Fusion = Literal["eager", "fused", "compiled"]
"""eager: one kernel per torch operator; fused: hand-written kernels for norms, activations and
loss (apex, Transformer Engine); compiled: torch.compile."""

MatmulType = Literal["fp32", "bf16", "fp8"]

Recompute = Literal["none", "selective", "operators", "full"]
"""selective: the attention core; operators: elementwise and every second matrix product (torch's
selective checkpointing by operator); full: whole blocks."""


ROW_CHUNKS = 4
"""Column chunks of a row-parallel product at run time, where collectives overlap."""


@frozen
class Execution:
    """What a program does beside the layout."""

    attention: Attention = "flash"
    fusion: Fusion = "eager"
    fused_norm: bool = False
    """Norms are one kernel even where other operators are not."""
    fused_loss: bool = False
    """The loss reads logits in their own type and writes their gradient over them."""
    logit_copies: int = 3
    """Float32 tensors as large as the logits that an eager loss holds at its peak."""
    cuts_loss_by_dtensor: bool = False
    """The loss over logits cut by tp is torch's `loss_parallel`, whose backward holds the zeroed
    gradient and the exponents besides."""
    keeps_gathered_inputs: bool = False
    """Products of tp save the whole input that they gathered (DTensor), not this rank's part of it
    (Megatron-LM gathers it again)."""
    unused_gradients: bool = False
    """Products add weight gradients to the sums themselves, and a tensor of each weight's shape is
    kept for autograd all the same (Transformer Engine)."""
    fuses_gradients: bool = True
    """Products add weight gradients to the sums over microbatches; else kernels of their own do."""
    saves_quantised: bool = False
    """Products keep inputs in the type that they multiply in (Transformer Engine under fp8)."""
    torch_pipeline: bool = False
    """torch.distributed.pipelining around FSDP2: a buffer for what every microbatch receives, every
    output kept until the next step; gradients are whole until a stage's last backward."""
    matmul: MatmulType = "bf16"
    """Type of the operands of the blocks' matrix products."""
    element_bytes: int = 2
    """Of activations and weights at work."""
    weight_bytes: int = 2
    """Of a resident weight: 4 where only float32 weights are kept and each use casts."""
    gradient_bytes: int = 4
    """Of an accumulated gradient."""
    state_bytes: int = 12
    """Of optimizer state per parameter, master copy included."""
    reduce_bytes: int = 4
    """Of a gradient on the wire."""
    gather_bytes: int = 2
    """Of a weight on the wire."""
    recompute: Recompute = "none"
    recompute_share: float = 1.0
    """Share of the layers that recompute; the others keep everything."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the node's RAM."""
    offloads_gradients: bool = False
    """Gradients go there as they come, beside what waits there (DeepSpeed, PyTorch's FSDP)."""
    sequence_parallel: bool = False
    shard_size: int | None = None
    """Ranks that share sharded state; None: all of dp x cp. Groups of them are replicas (HSDP)."""
    overlap_tp: bool = False
    """Collectives of tp run beside matrix products."""
    row_chunks: int | None = None
    """Column chunks of a row-parallel product whose sums run beside the chunks behind them, as this
    launcher's workers do it; None: the sequence in pieces, as fused kernels do it."""
    file_splits_backward: bool = True
    """Whether the schedule, where that is a file, has weight gradients by themselves."""
    overlap_dp: bool = False
    """Reduction and gathers of dp run beside the computing."""
    overlap_ep: bool = False
    """Tokens travel to experts and back while other microbatches compute (DualPipe)."""
    sends_to_nodes: bool = False
    """A token that several experts of a node want is sent there once (DeepEP)."""
    most_expert_nodes: int | None = None
    """Nodes that the experts of one token may be on; None: any number."""
    reduces_by_all_reduce: bool = False
    """ZeRO-1 and 2 all-reduce whole gradients and let every rank keep its part."""
    whole_tensors: bool = False
    """ZeRO-1 gives each rank whole tensors (InternEvo): a sum towards each owner, and a broadcast
    from it; ranks beyond the number of tensors own none."""
    overlap_p2p: bool = True
    """Stages exchange activations while they compute."""
    p2p_paired: bool = True
    """Without overlap: a stage sends and receives at once (Megatron-LM), not one after the other
    (DeepSpeed's pipeline)."""
    cp_mode: Literal["ring", "all_gather", "ulysses"] = "ring"
    repeats_keys: bool = False
    """Keys and values are copied for every query head before attention reads and cp sends them."""
    p2p_split: bool = False
    """tp ranks send a share each and gather it behind the wire."""
    p2p_whole_gradients: bool = False
    """What comes back is not shared out so (DeepSpeed's pipeline in 2021)."""
    fused_optimizer: bool = True
    sees_all: bool = False
    """Attention has no causal mask (an encoder)."""
    dropout_masks: bool = False
    """Dropout is on: masks are kept and read."""
    document_masks: bool = False
    """Documents of a sample are kept apart by a mask over all pairs of its tokens."""
    window_masks: bool = False
    """A sliding window is a mask over all pairs of tokens."""
    parallel_block: bool = False
    """Attention and MLP read the same input: one all-reduce for both."""
    final_all_reduce_again: bool = False
    """Recomputation repeats the block's last all-reduce, although nothing needs it."""
    expandable_segments: bool = False
    """torch's allocator grows its segments (PYTORCH_CUDA_ALLOC_CONF), so that pieces join."""
    reserved: bool = True
    """Memory is what the allocator reserves, not only what tensors hold."""
    snapshot_bytes: int = 0
    """Of host memory per parameter, for the copy that a checkpoint is written from."""
    under_pressure: bool = False
    """The allocator gives free segments back before it fails, so that less of a reserve stays."""
    process: bool = True
    """Memory includes the process: context, libraries, communicators."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """All that a prediction needs; equal to itself alone, so that it is quick to look up."""

    model: Model
    hardware: Hardware
    layout: Layout
    execution: Execution
    train_steps: int = 1


def shards_of(job: Job) -> int:
    """Ranks that share what zero_stage shards: those of dp x cp, or fewer of them (HSDP)."""
    replicas = job.layout.dp * job.layout.cp
    return min(job.execution.shard_size or replicas, replicas)


def expert_shards_of(job: Job) -> int:
    """The same of experts, which have fewer replicas: with ep, tp ranks hold whole ones."""
    layout = job.layout
    return max(1, shards_of(job) * (layout.tp if layout.ep > 1 else 1) // layout.ep)


def runtime_job(run: Run, layout: Layout, execution: Execution | None = None) -> Job:
    """A run as this launcher's workers execute it; `execution` where it is known already."""
    return Job(
        model=run.model,
        hardware=run.hardware,
        layout=layout,
        execution=execution or runtime_execution(run, layout),
        train_steps=run.train.steps,
    )


def runtime_execution(run: Run, layout: Layout) -> Execution:
    """What the runtime does: eager or compiled blocks, float32 gradients, ZeRO or FSDP2."""
    compute = run.precision.compute
    size = 4 if compute == "fp32" else 2
    kept: Recompute = layout.recompute  # type: ignore[assignment]
    is_fsdp2 = layout.engine == "fsdp2"
    state_bytes = optimizer_bytes_per_parameter(run.optimizer, compute, layout.zero_stage)
    weight_bytes = size
    if is_fsdp2 and layout.zero_stage == 3:
        # The masters are all there is: weights in the compute type exist only while gathered.
        weight_bytes, state_bytes = 4, state_bytes - 4
    return Execution(
        attention="flash",
        fusion="compiled" if run.train.compile else "eager",
        matmul=compute,
        element_bytes=size,
        weight_bytes=weight_bytes,
        gradient_bytes=4,
        state_bytes=state_bytes,
        reduce_bytes=4,
        gather_bytes=size,
        recompute=kept,
        recompute_share=1 / layout.recompute_every,
        offload=layout.offload,  # type: ignore[arg-type]
        shard_size=run.parallelism.shard_size,
        sequence_parallel=layout.sequence_parallel,
        overlap_tp=layout.overlap_tp,
        row_chunks=ROW_CHUNKS,
        file_splits_backward=is_schedule_file(layout.schedule) and splits_backward(run),
        overlap_p2p=layout.overlap_p2p,
        overlap_dp=(layout.zero_stage == 3 or is_fsdp2) and hides_transfers(run.hardware),
        reduces_by_all_reduce=not is_fsdp2,
        logit_copies=1,
        expandable_segments=True,
        fused_norm=True,  # torch's own kernel, since 2.9
        cp_mode=run.parallelism.cp_mode,
        dropout_masks=run.model.dropout > 0,
        snapshot_bytes=saved_bytes_per_parameter(run.optimizer) if run.checkpoint.is_on else 0,
        document_masks=run.data.packing == "documents",
        window_masks=has_window(run.model, layout.sequence_length),
    )


def hides_transfers(hardware: Hardware) -> bool:
    """Whether data moves beside computing; a CPU's cores move it themselves."""
    return hardware.device != "cpu"


def has_window(model: Model, sequence_length: int) -> bool:
    """Whether some token does not see all tokens before it."""
    return model.sliding_window is not None and model.sliding_window < sequence_length


def saved_bytes_per_parameter(optimizer: Optimizer) -> int:
    """What a checkpoint holds: the weight and the optimizer's state, all in float32."""
    return 4 + (8 if optimizer.name == "adamw" else 4 if optimizer.momentum else 0)


def optimizer_bytes_per_parameter(optimizer: Optimizer, compute: str, zero_stage: int) -> int:
    """Float32 state, and the master copy: needed under bf16, and always made by DeepSpeed."""
    state = 8 if optimizer.name == "adamw" else (4 if optimizer.momentum else 0)
    return state + (4 if compute == "bf16" or zero_stage > 0 else 0)
