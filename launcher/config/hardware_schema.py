"""What a run computes on: devices, nodes and what joins them, as facts with units."""

from typing import Annotated, Literal

from launcher.config.record import (
    Latency,
    Nodes,
    PerNode,
    Positive,
    Rate,
    Record,
    Wait,
)
from launcher.config.record_marks import LISTED, Range
from launcher.config.resume_class import Numerics, Resharding, Safe

Speed = Annotated[float, Range(ge=1e-6, le=1e6)]


class PeakFlops(Record):
    """Dense peak FLOP/s (2 per multiply-add) per compute type, without sparsity."""

    fp32: Safe[Rate]
    """float32 as torch runs it by default (no TF32)."""
    bf16: Safe[Rate]
    """bfloat16 with float32 accumulation."""
    fp8: Safe[Rate | None] = None
    """8-bit floats with float32 accumulation; None: the device has none."""


class AttentionRates(Record):
    """Share of the bf16 peak that attention in one kernel reaches on long causal sequences."""

    forward: Safe[Annotated[float, Range(gt=0, le=1)]] = 0.62
    backward: Safe[Annotated[float, Range(gt=0, le=1)]] = 0.55


KernelKind = Literal["matmul", "attention", "memory"]
ExchangeKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]
MatmulType = Literal["fp32", "bf16", "fp8"]


class MeasuredKernel(Record):
    """One line of a table of measured kernels (`launch calibrate`)."""

    kind: Safe[Literal[KernelKind, ExchangeKind]]
    """matmul: m x k times k x n; attention: causal, forward, m tokens, n heads of width k; memory:
    m bytes read and written. An exchange between n ranks of a node: m bytes, the whole."""
    type: Safe[MatmulType]
    """Type of the operands; of exchanges it does not matter."""
    m: Safe[Positive]
    """Size, by kind."""
    n: Safe[Positive]
    """Size, by kind."""
    k: Safe[Positive]
    """Size, by kind."""
    seconds: Safe[Latency]
    """On one process' share of the machine."""


class Gpu(Record):
    """One accelerator, or the share of a CPU machine that one process gets."""

    name: Safe[str]
    """Product name."""
    memory_bytes: Safe[Positive]
    """Memory that programs can use."""
    memory_bandwidth: Safe[Rate]
    """Bytes per second."""
    peak_flops: Safe[PeakFlops]
    """FLOP/s per compute type."""
    has_bf16: Safe[bool] = True
    """Whether its matrix units take bfloat16; without, the 16-bit peak is that of float16."""
    max_efficiency: Safe[Annotated[float, Range(gt=0, le=1)]]
    """Share of peak that large matrix products reach."""
    op_overhead_s: Safe[Wait]
    """Seconds that any operator takes however small it is."""
    context_bytes: Safe[Annotated[int, Range(ge=0)]]
    """Memory that a process takes before its first tensor (context, libraries, communicators)."""
    step_overhead_s: Safe[Wait] = 0.0
    """Seconds per step outside of kernels: data, synchronisation, the update's launches."""
    core_share: Safe[Annotated[float, Range(gt=0, le=1)] | None] = None
    """Of a CPU: the part of a core that each process gets while all compute, of which the other
    facts are; 1: cores of its own. None: a GPU."""
    multiprocessors: Safe[Positive | None] = None
    """Units that matrix kernels spread their tiles over; None: products are not cut into tiles."""
    memory_efficiency: Safe[Annotated[float, Range(gt=0, le=1)]] = 0.85
    """Share of memory_bandwidth that large elementwise kernels reach."""
    fp8_efficiency: Safe[Annotated[float, Range(gt=0, le=1)] | None] = None
    """Share of the fp8 peak that large matrix products reach; None: max_efficiency."""
    flash_attention: Safe[AttentionRates] = AttentionRates()
    """FlashAttention 2 and what copies it."""
    triton_attention: Safe[AttentionRates | None] = None
    """FlashAttention 1 written in Triton; None: as flash_attention."""
    cudnn_attention: Safe[AttentionRates | None] = None
    """cuDNN's and FlashAttention 3's kernels; None: as flash_attention."""
    kernels: Safe[Annotated[tuple[MeasuredKernel, ...], LISTED]] = ()
    """Measured kernels, read from hardware.kernels; they correct the model near their sizes."""


class Node(Record):
    """What joins the devices of one node."""

    name: Safe[str]
    """Product name of the node or of its interconnect."""
    bandwidth: Safe[Rate]
    """Bytes per second per device and direction, inside the node."""
    latency_s: Safe[Latency]
    """Seconds per message inside the node."""
    ll128_latency_s: Safe[Latency | None] = None
    """The same for NCCL's LL128 protocol; None: there is none (gloo)."""
    efficiency: Safe[Annotated[float, Range(gt=0, le=1)]] = 0.8
    """Share of bandwidth that large collectives reach."""
    host_memory_bytes: Safe[Positive]
    """RAM of the node."""
    host_link_bandwidth: Safe[Rate] = 25e9
    """Bytes per second between a device and the node's RAM, per direction."""
    host_memory_bandwidth: Safe[Rate] = 200e9
    """Bytes per second of the node's RAM, which its processes share."""
    switch_efficiency: Safe[Annotated[float, Range(gt=0, le=1)] | None] = None
    """What NCCL's own model takes off the bandwidth where the switch adds up (NVLink SHARP, NVLS);
    None: it cannot."""
    domain_gpus: Safe[Positive | None] = None
    """Devices joined at `bandwidth` where switches join more than a node (NVL72); None: a node."""


class Network(Record):
    """What joins the nodes."""

    name: Safe[str]
    """Product name of the fabric."""
    bandwidth: Safe[Rate]
    """Bytes per second per device and direction, between nodes."""
    latency_s: Safe[Latency]
    """Seconds per message between nodes."""
    ll128_latency_s: Safe[Latency | None] = None
    """The same for NCCL's LL128 protocol; None: there is none (gloo)."""
    contention: Safe[Annotated[float, Range(ge=0, le=1)]] = 0.0
    """What a collective loses per doubling of the nodes that it spans: flows that meet in switches.
    Its bandwidth is divided by 1 + contention x log2(nodes)."""
    oversubscription: Safe[Annotated[float, Range(ge=1, le=1e6)]] = 1.0
    """Bandwidth into the leaf switches of a fat tree over that out of them; 1: non-blocking."""
    nodes_per_leaf: Safe[Positive | None] = None
    """Nodes that reach each other through one leaf switch, which oversubscription does not touch;
    None: one."""
    efficiency: Safe[Annotated[float, Range(gt=0, le=1)]] = 0.8
    """Share of bandwidth that large collectives reach."""


class Hardware(Record):
    """The devices that the job gets."""

    name: Safe[str]
    """The file's name under conf/hardware."""
    device: Numerics[Literal["cuda", "cpu", "auto"]] = "cuda"
    """What workers compute on; auto (local only): cuda if the machine has enough GPUs, else cpu."""
    num_nodes: Resharding[Nodes] = 1
    """Nodes."""
    gpus_per_node: Resharding[PerNode | None] = None
    """Devices (processes) per node; None (local only): all GPUs, or what the layout asks for."""
    gpu: Safe[Gpu | None] = None
    """None (local only): detected."""
    node: Safe[Node | None] = None
    """None (local only): detected."""
    network: Safe[Network | None] = None
    """None: no second node."""
    speeds: Resharding[Annotated[tuple[Speed, ...], LISTED] | None] = None
    """Unequal devices: relative speed of every node, or of every device, where `gpu` describes one
    of speed 1; a stage gets layers by its slowest device. None: all are equal."""
    kernels: Safe[str | None] = None
    """Table that `launch calibrate` wrote, used instead of the model where it has values."""
    price_per_gpu_hour: Safe[Annotated[float, Range(gt=0, le=1e9)] | None] = None
    """What an hour of one device costs, in any currency; None: the plan says no cost."""
