"""What a run is made of: strict, frozen records that refuse every unknown key.

A value of None means "open": the plan fills it (`plan/fill.py`). After `build_plan` nothing that
the workers read is open any more.
"""

from typing import Annotated, Literal, get_args

from launcher.config.hardware_schema import Gpu, Hardware, Network, Node
from launcher.config.launch_schema import Launch
from launcher.config.model_schema import Experts, LatentAttention, Model, RopeScaling
from launcher.config.record import Batch, Degree, Fraction, Positive, PositiveFloat, Record
from launcher.config.record_marks import LISTED, Named, Range
from launcher.config.resume_class import Forbidden, Numerics, Resharding, Safe

__all__ = [
    "Checkpoint",
    "Data",
    "Experts",
    "Gpu",
    "Hardware",
    "LatentAttention",
    "Launch",
    "Model",
    "Network",
    "Node",
    "Optimizer",
    "Parallelism",
    "Precision",
    "Record",
    "RopeScaling",
    "Run",
    "ScheduleName",
    "Train",
    "is_schedule_file",
]

Axis = Literal["tp", "cp", "ep", "dp", "pp"]


ScheduleName = Literal[
    "naive",
    "gpipe",
    "1f1b",
    "interleaved_1f1b",
    "zb_h1",
    "zb_h2",
    "zb_1p",
    "zb_2p",
    "zb_v",
    "dualpipev",
]


def is_schedule_file(value: object) -> bool:
    """Whether a schedule is named by its file."""
    return isinstance(value, str) and value.endswith((".csv", ".json"))


def _is_schedule(value: object) -> bool:
    return value in get_args(ScheduleName) or is_schedule_file(value)


Schedule = Annotated[ScheduleName | str, Named(_is_schedule, "no such schedule")]


class Parallelism(Record):
    """How the model and the batch are cut."""

    name: Safe[str]
    """The file's name under conf/parallelism."""
    tp: Resharding[Degree | None] = None
    """Ranks that share each matrix; keep inside one node. None: filled."""
    cp: Resharding[Degree] = 1
    """Ranks that share each sequence."""
    ep: Resharding[Degree] = 1
    """Ranks that share the experts."""
    pp: Resharding[Degree | None] = None
    """Pipeline stages. None: filled."""
    vpp: Resharding[Degree] = 1
    """Model chunks per pipeline stage."""
    layers_per_stage: Resharding[Annotated[tuple[Positive, ...], LISTED] | None] = None
    """Blocks of every stage, or of every chunk (pp x vpp of them), in the order of the model. None:
    split by cost, embedding and head included."""
    dp: Resharding[Degree | None] = None
    """Replicas that share the batch. None: what is left of the devices."""
    fill: Safe[Literal["fit", "tp", "pp"]] = "fit"
    """Which open axis takes devices first. fit: tp, then pp, until the model fits; tp: tp fills the
    node; pp: stages fill the node. dp takes the rest."""
    zero_stage: Resharding[Annotated[int, Range(ge=0, le=3)]] = 1
    """ZeRO: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters sharded over dp."""
    shard_size: Resharding[Degree | None] = None
    """Ranks of dp x cp that share what zero_stage shards; groups of so many are replicas of each
    other (HSDP). None: all of them. Given: planned, not yet run."""
    engine: Resharding[Literal["deepspeed", "fsdp2"]] = "deepspeed"
    """What shards over dp: DeepSpeed's ZeRO or PyTorch's fully_shard. Stage 0 needs neither."""
    schedule: Resharding[Schedule] = "1f1b"
    """Order of the microbatches in the pipeline: a name, or a .csv or .json file that has it."""
    schedule_lines: Resharding[Annotated[tuple[str, ...], LISTED] | None] = None
    """What stands in that file, line by line; read when the run is composed."""
    recompute: Safe[Literal["none", "selective", "full"] | None] = "none"
    """Activations computed again in backward: none, attention only, whole blocks. None: filled."""
    recompute_every: Safe[Positive] = 1
    """Of every so many blocks one recomputes. Above 1: planned, not yet run."""
    offload: Resharding[Literal["none", "optimizer", "parameters"]] = "none"
    """What waits in the node's RAM: optimizer state, which the CPU updates there, or also the
    weights, fetched block by block. Planned, not yet run."""
    sequence_parallel: Resharding[bool] = False
    """Norms, dropout and residuals sharded along the sequence over tp."""
    overlap_tp: Safe[bool | None] = None
    """Collectives of tp run beside matrix products. None: on GPUs, not on CPU cores."""
    overlap_p2p: Safe[bool] = True
    """Stages compute while activations travel; false: each waits while its input travels."""
    cp_mode: Resharding[Literal["ring", "all_gather", "ulysses"]] = "ring"
    """How context-parallel ranks exchange keys and values."""
    order: Resharding[Annotated[tuple[Axis, ...], LISTED]] = ("tp", "cp", "dp", "pp")
    """Axes from the fastest-varying rank digit to the slowest."""


class Optimizer(Record):
    """The update rule and its learning-rate schedule."""

    name: Forbidden[Literal["adamw", "sgd"]]
    """Update rule."""
    learning_rate: Numerics[PositiveFloat]
    """Peak learning rate."""
    min_learning_rate: Numerics[Annotated[float, Range(ge=0)]] = 0.0
    """Where a decaying schedule ends."""
    schedule: Numerics[Literal["constant", "cosine", "linear"]] = "constant"
    """Decay after the warm-up, over train.steps."""
    warmup_steps: Numerics[Annotated[int, Range(ge=0)]] = 0
    """Steps of linear warm-up."""
    weight_decay: Numerics[Annotated[float, Range(ge=0)]] = 0.0
    """Decoupled for adamw, L2 for sgd; on matrices only, not on norms and biases."""
    beta1: Numerics[Fraction] = 0.9
    """adamw: decay of the first moment."""
    beta2: Numerics[Fraction] = 0.95
    """adamw: decay of the second moment."""
    eps: Numerics[PositiveFloat] = 1e-8
    """adamw: added to the root of the second moment."""
    momentum: Numerics[Fraction] = 0.0
    """sgd: momentum."""
    clip_grad_norm: Numerics[PositiveFloat | None] = 1.0
    """Global gradient norm is cut to this; None: never."""


TokenDtype = Literal["uint8", "uint16", "int32", "uint32"]


class Source(Record):
    """One of the texts of a mixture."""

    kind: Numerics[Literal["store", "megatron", "tokens"]]
    """As data.kind."""
    path: Numerics[str]
    """As data.path."""
    weight: Numerics[PositiveFloat] = 1.0
    """Its share of the samples is this over the sum of all weights."""
    dtype: Numerics[TokenDtype] = "uint16"
    """As data.dtype."""


class Data(Record):
    """Where tokens come from."""

    name: Safe[str]
    """The file's name under conf/data."""
    kind: Numerics[Literal["stdlib_text", "tokens", "store", "megatron", "mixture"]]
    """stdlib_text: sources of Python's standard library as bytes; store: made by `launch tokenize`;
    megatron: .bin and .idx of Megatron-LM; tokens: a bare file of ids; mixture: of sources."""
    path: Numerics[str | None] = None
    """store: the folder; megatron: the files without .bin and .idx; tokens: the file."""
    dtype: Numerics[TokenDtype] = "uint16"
    """tokens: type of one id, little-endian."""
    sources: Numerics[Annotated[tuple[Source, ...], LISTED]] = ()
    """mixture: what is mixed."""
    packing: Numerics[Literal["concatenate", "documents"]] = "concatenate"
    """What fills a sample. concatenate: the text as it comes; documents: the same, but no token
    sees another document, positions start again in each, and none predicts the next one."""
    validation_fraction: Numerics[Fraction] = 0.05
    """Share of the text, its last documents, that is held out; of every source of a mixture."""


class Train(Record):
    """How long, on what batches, and what is looked at on the way."""

    steps: Numerics[Positive]
    """Optimizer steps."""
    sequence_length: Numerics[Positive | None] = None
    """Tokens per sample. None: the model's longest, at most 8192."""
    global_batch_size: Numerics[Batch | None] = None
    """Samples per step = micro_batch_size x num_microbatches x dp. None: solved."""
    micro_batch_size: Resharding[Batch | None] = None
    """Samples per forward. None: solved."""
    num_microbatches: Resharding[Batch | None] = None
    """Forwards per step and replica. None: solved."""
    seed: Numerics[Annotated[int, Range(ge=0)]] = 1234
    """Of weights, data order and dropout."""
    init_from: Forbidden[str | None] = None
    """Folder with the first weights: Hugging Face's, a checkpoint or a run. None: random ones."""
    validate_every: Safe[Positive | None] = None
    """Steps between validations; None: only at the end."""
    validation_batches: Safe[Annotated[int, Range(ge=0)]] = 8
    """Global batches per validation; 0: no validation."""
    log_every: Safe[Positive] = 1
    """Steps between lines of metrics.jsonl."""
    compile: Safe[bool] = False
    """torch.compile every block."""
    tracker: Safe[Literal["tensorboard", "wandb"] | None] = None
    """Also gets every line of metrics.jsonl. None: no tracker."""
    tracker_project: Safe[str | None] = None
    """Weights & Biases' project. None: its own setting, WANDB_PROJECT or "uncategorized"."""


class Precision(Record):
    """Number formats; optimizer state and gradient accumulation are always float32."""

    name: Safe[str]
    """The file's name under conf/precision."""
    compute: Numerics[Literal["fp32", "bf16"]]
    """Format of weights, activations and their gradients in forward and backward."""


class Checkpoint(Record):
    """When the state is saved. With one of the periods also at the end, and when asked to stop."""

    every_steps: Safe[Positive | None] = None
    """Steps between checkpoints; None: no such period."""
    every_minutes: Safe[PositiveFloat | None] = None
    """Minutes between checkpoints; None: no such period."""
    keep: Safe[Positive | None] = None
    """How many of the newest are kept; None: all."""
    keep_every: Safe[Positive | None] = None
    """The M-th checkpoint, the 2M-th and so on are kept for good; None: `keep` alone decides."""

    @property
    def is_on(self) -> bool:
        """Whether a run saves by itself; when asked to (`launch checkpoint`) it always does."""
        return self.every_steps is not None or self.every_minutes is not None


class Run(Record):
    """Everything about one run; run.yaml holds exactly this."""

    name: Safe[str | None] = None
    """Names the run directory; None: the recipe's or the model's name."""
    recipe: Safe[str | None] = None
    """The recipe that the run started from; None: no recipe."""
    model: Model
    hardware: Hardware
    parallelism: Parallelism
    optimizer: Optimizer
    data: Data
    train: Train
    precision: Precision
    checkpoint: Checkpoint = Checkpoint()
    launch: Launch
