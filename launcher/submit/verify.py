"""Runs `launch verify`: the shrunk layout on CPU processes, then its report for people."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from launcher.errors import EXIT_DONE, EXIT_RUN_FAILED
from launcher.plan.build import build_plan
from launcher.plan.records import Layout, Plan
from launcher.plan.shrink import shrink_run
from launcher.plan.units import plural
from launcher.render.bundle import Bundle, Machine, render_bundle
from launcher.submit.local import run_script
from launcher.submit.write import new_run_dir, write_bundle

_MODULE = "launcher.runtime.verify"


def verify_plan(plan: Plan, machine: Machine, run_dir: str | None, as_json: bool) -> int:
    """Shrink, train twice, compare; the exit code says whether the layout is right."""
    small = build_plan(shrink_run(plan.run, plan.layout))
    with tempfile.TemporaryDirectory(prefix="launch-verify-") as temporary:
        root = new_run_dir("verify", run_dir or str(Path(temporary) / "run"))
        bundle = render_bundle(small, root, machine, module=_MODULE)
        write_bundle(bundle)
        report = _run(bundle, small)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print(render_report(report, plan, small))
    return EXIT_DONE if report["passed"] else EXIT_RUN_FAILED


def _run(bundle: Bundle, small: Plan) -> dict[str, Any]:
    layout = small.layout
    print(
        f"training {small.run.train.steps} steps on {layout.world_size} processes, "
        "then the same in one process",
        file=sys.stderr,
        flush=True,
    )
    run_script(bundle, small, on_poll=lambda: None)
    report: dict[str, Any] = json.loads(bundle.files.verification.read_text())
    return report


def render_report(report: dict[str, Any], plan: Plan, small: Plan) -> str:
    """The comparison, aligned: a line per step, the largest differences, the verdict."""
    full, layout = plan.layout, small.layout
    engine = "FSDP2 as ZeRO" if full.engine == "fsdp2" else "ZeRO"
    lines = [
        f"layout    {_axes(full)}, "
        + (f"cp_mode {plan.run.parallelism.cp_mode}, " if full.cp > 1 else "")
        + ("sequence parallel, " if full.sequence_parallel else "")
        + f"{full.schedule}, "
        f"{engine}-{full.zero_stage}, as {_axes(layout)} "
        f"with {layout.num_microbatches} {plural('microbatch', layout.num_microbatches)}, "
        "in float32",
        "",
        f"{'step':>4}{'loss':>12}{'one process':>13}{'relative':>10}"
        f"{'grad norm':>12}{'one process':>13}{'relative':>10}",
    ]
    lines += [
        f"{step['step'] + 1:>4}{step['loss']:>12.6f}{step['reference_loss']:>13.6f}"
        f"{step['loss_difference']:>10.1e}{step['grad_norm']:>12.6f}"
        f"{step['reference_grad_norm']:>13.6f}{step['grad_norm_difference']:>10.1e}"
        for step in report["steps"]
    ]
    lines += ["", f"weights after the last step, largest of {report['num_tensors']}:"]
    lines += [
        f"  {entry['difference']:.1e}  {entry['name']} (rank {entry['rank']})"
        for entry in report["weights"][:3]
    ]
    if report["left_out"]:
        names = report["left_out"]
        lines.append(f"  left out: {len(names)} key biases, which change no output ({names[0]}...)")
    verdict = "equal to one process" if report["passed"] else "NOT equal to one process"
    largest = max(report["largest"].values())
    lines += ["", f"{verdict}: largest {largest:.1e}, tolerance {report['tolerance']:.0e}"]
    return "\n".join(lines)


def _axes(layout: Layout) -> str:
    """The degrees, as in `tp 2 x cp 2 x pp 1 x dp 1`; cp only where there is any."""
    degrees = {axis: getattr(layout, axis) for axis in ("tp", "cp", "pp", "dp")}
    shown = (f"{axis} {size}" for axis, size in degrees.items() if axis != "cp" or size > 1)
    return " x ".join(shown)
