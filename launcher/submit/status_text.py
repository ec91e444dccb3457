"""What `launch status` prints for people."""

from __future__ import annotations

import shlex
import time

from launcher.node.records import read_record
from launcher.submit.status import StartOfJob, Status

_LABEL = 12
_SLOW = 5.0
"""A step that takes this many times as long as the ones before is worth a word."""
_SLOW_S = 60.0


def render_status(status: Status, now: float | None = None) -> str:
    """A few aligned lines: run, job, state, progress, starts, failure and what to type next."""
    now = time.time() if now is None else now
    lines = [_line("run", str(status.files.root)), _line("job", _job(status))]
    lines.append(_line("state", _state(status, now)))
    if status.state.problem:
        lines.append(_line("queue", f"Slurm cannot be asked: {status.state.problem}"))
    lines.append(_line("progress", _progress(status, now)))
    lines.append(_line("checkpoint", _checkpoint(status)))
    is_plain = len(status.starts) == 1 and status.starts[0].status == "open" and status.is_live
    if status.starts and not is_plain:
        requeues = f"{status.num_requeues} requeues" if status.num_requeues != 1 else "1 requeue"
        lines.append(_line("starts", f"{len(status.starts)}, {requeues}"))
        lines += [_line("", _start(start, status.is_live)) for start in status.starts]
    if status.failure is not None:
        lines.append(str(status.failure))
    lines += [f"  try {remedy}" for remedy in status.remedies]
    lines += [_line("next", line) for line in _next(status)]
    return "\n".join(lines)


def render_row(status: Status) -> str:
    """One line, for a list of runs."""
    steps, state = status.steps, status.state
    total = "?" if steps.total_steps is None else f"{steps.total_steps:,}"
    loss = "" if steps.loss is None else f"  loss {steps.loss:.4f}"
    why = f"  {state.why}" if state.why else ""
    return (
        f"{status.files.root.name:28} {state.job_id or '-':>10}  {state.word:10} "
        f"{steps.step:>8,}/{total}{loss}{why}"
    )


def _line(label: str, text: str) -> str:
    return f"{label:{_LABEL}}{text}".rstrip()


def _job(status: Status) -> str:
    state = status.state
    if state.kind != "slurm":
        return {"local": "on this machine"}.get(state.kind, f"by {state.kind}")
    queue = state.queue
    parts = [f"{state.job_id} of Slurm"]
    if queue is not None and queue.user:
        parts.append(f"user {queue.user}")
    if queue is not None and queue.nodes and queue.is_running:
        parts.append(f"nodes {queue.nodes}")
    if queue is not None and queue.time_left and queue.is_running:
        parts.append(f"{queue.time_left} to its time limit")
    return ", ".join(parts)


def _state(status: Status, now: float) -> str:
    state = status.state
    text = f"{state.word}: {state.why}" if state.why else state.word
    if state.queue is not None and state.queue.is_waiting:
        text += f"; expected start {_when(state.queue.start, now)}"
    if state.word == "cancelled" and (record := read_record(status.files.cancelled)):
        text += f"; asked for by {record.get('by', 'somebody')}"
    return text


def _when(moment: float | None, now: float) -> str:
    """`2026-01-31 12:00 (in 2:00:00)`; Slurm leaves it open until its scheduler has looked."""
    if moment is None:
        return "not known yet"
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
    return f"{clock} (in {span(moment - now)})" if moment > now else f"{clock} (now)"


def span(seconds: float) -> str:
    """`1-02:03:04`, as Slurm writes durations; days only where there are any."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def _progress(status: Status, now: float) -> str:
    steps = status.steps
    total = "?" if steps.total_steps is None else f"{steps.total_steps:,}"
    parts = [f"step {steps.step:,}/{total}"]
    if steps.loss is not None:
        parts.append(f"loss {steps.loss:.4f}")
    if steps.validation_loss is not None:
        parts.append(f"validation {steps.validation_loss:.4f}")
    if steps.tokens_per_s is not None:
        parts.append(f"{steps.tokens_per_s:,.0f} tokens/s")
    if status.is_live and steps.eta_s is not None:
        parts.append(f"ETA {span(steps.eta_s)}")
    if status.state.word == "running" and steps.last_at is not None:
        age = now - steps.last_at
        usual = steps.step_s or 0.0
        slow = age > max(_SLOW_S, _SLOW * usual)
        parts.append(f"last step {span(age)} ago" + (": is it stuck?" if slow else ""))
    return "  ".join(parts)


def _checkpoint(status: Status) -> str:
    steps = status.steps
    text = steps.checkpoint or "none yet"
    if steps.checkpoint_error:
        text += f"; the newest attempt failed: {steps.checkpoint_error}"
    return text


def _start(start: StartOfJob, is_live: bool) -> str:
    steps = ""
    if start.first_step is not None:
        last = "" if start.last_step is None else f" to {start.last_step}"
        steps = f"  from step {start.first_step}{last}"
    began = ""
    if start.started_at is not None:
        began = time.strftime("  %Y-%m-%d %H:%M:%S", time.localtime(start.started_at))
    nodes = f"  {','.join(start.nodes)}" if start.nodes else ""
    if start.recovery_s is not None:
        steps += f", training again after {start.recovery_s:.0f} s"
    if start.status == "open":
        end = "  runs" if is_live else "  has not said its end"
    else:
        end = f"  {start.status}: {start.why or start.reason.replace('_', ' ')}"
    bad = f" (bad: {', '.join(start.bad_nodes)})" if start.bad_nodes else ""
    return f"{start.job_id}.{start.restart}{began}{nodes}{steps}{end}{bad}"


def _next(status: Status) -> list[str]:
    """What can be typed now."""
    root, word = shlex.quote(str(status.files.root)), status.state.word
    if word == "running":
        return [f"launch logs {root} --follow", f"launch cancel {root}"]
    if word in ("queued", "requeued", "starting"):
        return [f"launch cancel {root}"]
    if word in ("failed", "lost", "stopped", "cancelled"):
        scratch = "" if status.steps.checkpoint else " --from-scratch"
        lines = [f"launch resume {root}{scratch}"]
        return [f"launch logs {root}", *lines] if word in ("failed", "lost") else lines
    return []
