"""What to change after a failure: overrides for `launch resume`, and what they are to do."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.records import Plan

_SHOWN = 4
_WORTHWHILE = 0.95
"""A layout whose predicted peak is above this share of the present one's is no remedy."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One thing to change."""

    key: str
    """Dotted key of the configuration that it is about."""
    override: str
    """As `launch resume RUN` takes it; empty where the value is the user's to find."""
    why: str
    """What it does, without its final stop."""

    def __str__(self) -> str:
        """`parallelism.recompute=full: predicted peak 38.0 GiB instead of 61.2`."""
        return f"{shlex.quote(self.override) if self.override else self.key}: {self.why}"

    def to_json(self) -> dict[str, str | None]:
        """The entry in `launch status --json`."""
        return {"key": self.key, "override": self.override or None, "why": self.why}


def find_remedies(kind: str, run: Run, node: str, error: str = "") -> tuple[Remedy, ...]:
    """What helps against a cause, the most useful first; a few at most.

    Args:
        kind: of the cause, see causes.py.
        run: the frozen run that failed.
        node: where the first rank failed; empty where unknown.
        error: its first line.

    """
    found = _TABLE.get(kind, _nothing)(run, node, error)
    return tuple(remedy for _, remedy in zip(range(_SHOWN), found, strict=False))


Remedies = Callable[[Run, str, str], Iterator[Remedy]]


def _nothing(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield from ()


def _out_of_memory(run: Run, node: str, error: str) -> Iterator[Remedy]:
    """Layouts with a smaller predicted peak, the fastest first."""
    from launcher.plan.resume import plan_resumed  # Hydra, so only where it is needed

    try:
        present = plan_resumed(run, ())
    except ConfigError:
        return
    tried = []
    for override, what in _smaller_layouts(run, present):
        try:
            plan = plan_resumed(run, override.split())
        except ConfigError:
            continue
        if plan.memory.peak_bytes <= _WORTHWHILE * present.memory.peak_bytes:
            tried.append((plan, override, what))
    for plan, override, what in sorted(tried, key=lambda entry: entry[0].time.step_s):
        slower = plan.time.step_s / present.time.step_s
        yield Remedy(
            key=override.partition("=")[0],
            override=override,
            why=f"{what}; predicted peak {plan.memory.peak_bytes / 2**30:.1f} GiB per rank instead "
            f"of {present.memory.peak_bytes / 2**30:.1f}, steps {slower:.2f} times as long",
        )


def _smaller_layouts(run: Run, plan: Plan) -> Iterator[tuple[str, str]]:
    """Overrides that may need less memory, and in words what they do."""
    layout = plan.layout
    if layout.micro_batch_size > 1:
        half = layout.micro_batch_size // 2
        yield f"train.micro_batch_size={half}", "fewer activations at once"
    if layout.recompute != "selective" and layout.recompute != "full":
        yield "parallelism.recompute=selective", "attention is computed again in backward"
    if layout.recompute != "full":
        yield "parallelism.recompute=full", "blocks are computed again in backward"
    for stage in range(layout.zero_stage + 1, 4):
        yield f"parallelism.zero_stage={stage}", "more of the state is sharded over dp"
    if layout.tp > 1 and not layout.sequence_parallel:
        yield "parallelism.sequence_parallel=true", "norms and residuals are sharded over tp"
    if layout.dp % 2 == 0:
        yield f"parallelism.tp={2 * layout.tp}", "each matrix is shared by more ranks"
        yield f"parallelism.pp={2 * layout.pp}", "more pipeline stages, fewer blocks on each"


def _host_out_of_memory(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if run.launch.name == "slurm":
        yield Remedy(key="launch.mem", override="", why="RAM that the job asks for on each node")
    if run.parallelism.offload != "none":
        yield Remedy(
            key="parallelism.offload",
            override="parallelism.offload=none",
            why="nothing waits in the node's RAM",
        )
    if run.hardware.device == "cpu":
        yield from _out_of_memory(run, node, error)


def _not_a_number(run: Run, node: str, error: str) -> Iterator[Remedy]:
    optimizer, steps = run.optimizer, run.train.steps
    yield Remedy(
        key="optimizer.learning_rate",
        override=f"optimizer.learning_rate={optimizer.learning_rate / 2:g}",
        why="half of it, from the newest checkpoint on",
    )
    if optimizer.warmup_steps < steps // 20:
        yield Remedy(
            key="optimizer.warmup_steps",
            override=f"optimizer.warmup_steps={steps // 20}",
            why="a longer warm-up; it matters where the first steps diverge",
        )
    if optimizer.clip_grad_norm is None or optimizer.clip_grad_norm > 1.0:
        yield Remedy(
            key="optimizer.clip_grad_norm",
            override="optimizer.clip_grad_norm=1.0",
            why="single large gradients are cut",
        )
    if run.precision.compute != "fp32":
        yield Remedy(
            key="precision.compute",
            override="precision=fp32",
            why="shows whether the number format is to blame",
        )


def _disk_full(run: Run, node: str, error: str) -> Iterator[Remedy]:
    keep = run.checkpoint.keep
    if keep is None or keep > 2:
        yield Remedy(
            key="checkpoint.keep",
            override="checkpoint.keep=2",
            why="only the newest two checkpoints stay on the disk",
        )
    if run.checkpoint.keep_every is not None:
        yield Remedy(
            key="checkpoint.keep_every",
            override="checkpoint.keep_every=null",
            why="no checkpoint is kept for good",
        )
    every = run.checkpoint.every_steps
    if every is not None:
        yield Remedy(
            key="checkpoint.every_steps",
            override=f"checkpoint.every_steps={2 * every}",
            why="half as many checkpoints",
        )


def _hang(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield Remedy(
        key="launch.hang_timeout_s",
        override="",
        why="longer, if a step, a validation or a checkpoint really takes that long",
    )
    yield from _avoid_node(run, node, error)


def _timeout(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield from _hang(run, node, error)
    yield from _network(run, "", error)


def _avoid_node(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if not node:
        return
    if run.launch.name == "slurm":
        # The dots of a full name would not be Slurm's name of the node.
        name = node.partition(".")[0]
        yield Remedy(
            key="launch.exclude",
            override=f"launch.exclude={name}",
            why="the job runs on other nodes",
        )
    elif run.hardware.num_nodes > 1:
        yield Remedy(key="launch.hosts", override="", why=f"another host in the place of {node}")


def _network(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if run.hardware.device == "cuda":
        yield Remedy(
            key="launch.env",
            override="+launch.env.NCCL_DEBUG=INFO",
            why="NCCL says in the logs which link it uses and which one fails",
        )
    if run.hardware.num_nodes > 1:
        library = "NCCL" if run.hardware.device == "cuda" else "GLOO"
        yield Remedy(
            key="launch.env",
            override="",
            why=f"{library}_SOCKET_IFNAME names the network interface, if a wrong one is taken",
        )
    yield from _avoid_node(run, node, error)


def _rendezvous(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if run.launch.name == "torchrun":
        yield Remedy(
            key="launch.rendezvous_endpoint",
            override="",
            why="host:port that every host can reach, of one that takes part",
        )
    yield from _network(run, node, error)


def _port_taken(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if run.launch.name == "torchrun":
        yield Remedy(
            key="launch.rendezvous_endpoint", override="", why="another port on the same host"
        )


def _missing_module(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield Remedy(
        key="launch.python", override="", why="the interpreter that has everything, on every node"
    )
    if run.launch.name == "slurm":
        yield Remedy(
            key="launch.setup", override="", why="lines that load modules or an environment"
        )
        yield Remedy(key="launch.image", override="", why="the container, if the job runs in one")


def _missing_file(run: Run, node: str, error: str) -> Iterator[Remedy]:
    paths = [run.data.path, *(source.path for source in run.data.sources)]
    if any(path and path in error for path in paths):
        yield Remedy(
            key="data.path", override="", why="a path that every node sees, on a shared file system"
        )
    if run.launch.name == "slurm":
        yield Remedy(
            key="launch.mounts", override="", why="folders that a container sees must be named"
        )


def _shared_memory(run: Run, node: str, error: str) -> Iterator[Remedy]:
    if run.launch.name == "slurm":
        yield Remedy(
            key="launch.mounts",
            override="",
            why="/dev/shm of the node, where the container has a small one of its own",
        )


def _device_code(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield Remedy(
        key="launch.env",
        override='+launch.env.CUDA_LAUNCH_BLOCKING="1"',
        why="the traceback then names the kernel; slow, for finding it only",
    )
    yield from _avoid_node(run, node, error)


def _time_limit(run: Run, node: str, error: str) -> Iterator[Remedy]:
    yield Remedy(key="launch.time_limit", override="", why="longer, if the partition allows it")
    if not run.checkpoint.is_on:
        yield Remedy(
            key="checkpoint.every_minutes",
            override="checkpoint.every_minutes=30",
            why="a job that is cut off goes on from its newest checkpoint",
        )


_TABLE: Mapping[str, Remedies] = {
    "out_of_memory": _out_of_memory,
    "host_out_of_memory": _host_out_of_memory,
    "killed": _host_out_of_memory,
    "not_a_number": _not_a_number,
    "disk_full": _disk_full,
    "hang": _hang,
    "timeout": _timeout,
    "bad_gpu": _avoid_node,
    "bad_node": _avoid_node,
    "driver": _avoid_node,
    "bad_disk": _avoid_node,
    "network": _network,
    "rendezvous": _rendezvous,
    "port_taken": _port_taken,
    "missing_module": _missing_module,
    "missing_file": _missing_file,
    "shared_memory": _shared_memory,
    "device_code": _device_code,
    "crashed": _avoid_node,
    "time_limit": _time_limit,
}
