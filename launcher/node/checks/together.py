"""Looks at all nodes of a job together before anything is built: each agent at its own, the first
one judges.

Every node starts a process per device (runtime/check.py) and writes what it sees into the run
directory, which also shows that the directory is shared. The first node reads all of it, names who
is bad and tells the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from launcher.config.schema import Run
from launcher.node.checks.gpus import Gpus, ask_gpus
from launcher.node.checks.judge import (
    Fault,
    Wanted,
    find_faults,
    is_complete,
    is_everywhere,
    last_stage,
    own_faults,
)
from launcher.node.checks.processes import CheckProcesses
from launcher.node.checks.report import NodeReport, report_from_json, report_to_json
from launcher.node.place import Place
from launcher.node.records import read_record, write_record
from launcher.plan.records import Layout

_POLL_S, _POLL_PER_NODE_S = 0.1, 0.002
_SEEN_S = 10.0
"""So long a directory that another node has made may be unknown here without a word."""
_OTHERS_S = 10.0
"""Where one node is bad, the others still get so long to say whether they are, too."""
_LAST_WORD_S = 30.0
"""After the time is over the first node needs a moment to say so."""


def wait_to_see(place: Place, patience_s: float = 330.0) -> bool:
    """Whether what the first node has made in the run directory is seen here, after a while.

    Network file systems need some seconds. Where it never comes, the first node names this one,
    since it hears nothing of it; an end at once would end the other nodes before they have spoken.
    What the configuration says cannot be read: `patience_s` is its default and some more.
    """
    said_at = time.monotonic() + min(_SEEN_S, patience_s)
    deadline = time.monotonic() + patience_s
    has_said = False
    while not place.start.root.is_dir():
        if not has_said and time.monotonic() >= said_at:
            has_said = True
            print(
                f"node {place.node}: {place.start.root} is not there, though the first node has "
                "made it; the run directory must be on a file system that all nodes share",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


class NodeCheck:
    """The checks of one start of a job, as one node takes part in them."""

    def __init__(
        self,
        place: Place,
        run: Run,
        layout: Layout,
        is_over: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_over` tells whether the job is asked to end."""
        self._place, self._run, self._layout = place, run, layout
        self._is_over, self._clock = is_over, clock
        self._device = str(run.hardware.device)
        self._timeout_s = run.launch.check_timeout_s
        self._report = NodeReport(node=place.node)
        self._bad_since: float | None = None

    def passes(self) -> bool:
        """Take part; False where the job must not train on these nodes. The first node says why."""
        began = self._clock()
        try:
            self._place.start.checks.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            return self._wait_in_vain(error, began)
        processes = CheckProcesses(self._place, self._layout, self._device, self._timeout_s)
        pool = ThreadPoolExecutor(max_workers=1)
        gpus = pool.submit(ask_gpus) if self._device == "cuda" else None
        try:
            return self._look(processes, gpus, began)
        finally:
            processes.end()
            pool.shutdown(wait=False)

    def _look(
        self, processes: CheckProcesses, gpus: Future[Gpus | None] | None, began: float
    ) -> bool:
        """Until there is a verdict."""
        patience_s = self._timeout_s + (0.0 if self._is_first else _LAST_WORD_S)
        while not self._is_over():
            self._see(processes, gpus)
            elapsed_s = self._clock() - began
            if self._is_first:
                verdict = self._judge(elapsed_s)
                if verdict is not None:
                    return verdict
            elif (said := read_record(self._place.start.check_verdict)) is not None:
                return bool(said["ok"])
            if elapsed_s > patience_s:
                return True  # Nobody says more; where the agents cannot meet, it is said there.
            time.sleep(max(_POLL_S, _POLL_PER_NODE_S * self._layout.nodes))
        return True  # It is asked to end, and does so by its ordinary way.

    @property
    def _is_first(self) -> bool:
        return self._place.index == 0

    def _see(self, processes: CheckProcesses, gpus: Future[Gpus | None] | None) -> None:
        """What is new on this node."""
        ranks, has_ended = processes.look()
        last = last_stage(self._layout.world_size)
        is_answered = gpus is None or gpus.done()
        report = replace(
            self._report,
            ranks=ranks,
            gpus=gpus.result() if gpus is not None and gpus.done() else None,
            is_final=is_answered and (has_ended or all(rank.stage == last for rank in ranks)),
        )
        if report != self._report:
            self._report = report
            self._write()

    def _write(self) -> None:
        write_record(self._place.start.report(self._place.node), report_to_json(self._report))

    def _wait_in_vain(self, error: OSError, began: float) -> bool:
        """A node that cannot speak is named for that by the first one, which ends the job."""
        print(
            f"node {self._place.node}: the run directory cannot be written here: {error}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        while self._clock() - began < self._timeout_s + _LAST_WORD_S and not self._is_over():
            time.sleep(_POLL_S)
        return False

    # Of the first node.

    def _judge(self, elapsed_s: float) -> bool | None:
        """The verdict, also written; None while nodes are still busy."""
        reports = self._reports()
        wanted = self._wanted(reports)
        is_over = elapsed_s > self._timeout_s
        is_done = is_complete(reports, wanted)
        if not (is_done or is_over or self._has_waited(reports, wanted, elapsed_s)):
            return None
        faults = find_faults(reports, wanted, is_over)
        is_ok = is_done and not faults
        self._conclude(reports, wanted, faults, is_ok, elapsed_s)
        return is_ok

    def _has_waited(
        self, reports: Mapping[str, NodeReport], wanted: Wanted, elapsed_s: float
    ) -> bool:
        """Whether somebody is bad, and the others have had time to say whether they are, too."""
        if not any(own_faults(report, wanted) for report in reports.values()):
            return False
        if self._bad_since is None:
            self._bad_since = elapsed_s
        have_all = len(reports) >= len(wanted.nodes) and all(
            one.is_final or (one.ranks and all(rank.progress for rank in one.ranks))
            for one in reports.values()
        )
        return have_all or elapsed_s - self._bad_since > _OTHERS_S

    def _reports(self) -> dict[str, NodeReport]:
        found = [read_record(path) or {} for path in self._place.start.checks.glob("*.json")]
        reports = [report_from_json(document) for document in found if "ranks" in document]
        return {report.node: report for report in reports if report is not None}

    def _wanted(self, reports: Mapping[str, NodeReport]) -> Wanted:
        named = (read_record(self._place.start.nodes) or {}).get("nodes") or []
        nodes = list(dict.fromkeys([*map(str, named), *reports]))
        number = self._layout.nodes
        nodes += [f"node {index + 1} of {number}" for index in range(len(nodes), number)]
        return Wanted(
            nodes=tuple(nodes[:number]),
            per_node=self._layout.gpus_per_node,
            device=self._device,
            timeout_s=self._timeout_s,
        )

    def _conclude(
        self,
        reports: Mapping[str, NodeReport],
        wanted: Wanted,
        faults: Mapping[str, Sequence[Fault]],
        is_ok: bool,
        elapsed_s: float,
    ) -> None:
        for node in wanted.nodes:
            write_record(
                self._place.start.check(node),
                {
                    "node": node,
                    "ok": not faults.get(node),
                    "findings": [asdict(fault) for fault in faults.get(node, ())],
                    "seconds": round(elapsed_s, 2),
                    **_measured(reports.get(node)),
                },
            )
        is_common = is_everywhere(faults, wanted)
        why = _why(faults, is_common)
        verdict = {"ok": is_ok, "why": "" if is_ok else why, "is_everywhere": is_common}
        write_record(self._place.start.check_verdict, verdict)
        print(_said(reports, faults, is_ok, elapsed_s, why), flush=True)


def _measured(report: NodeReport | None) -> dict[str, Any]:
    """For people who look into the file."""
    if report is None:
        return {}
    found = report.gpus.found if report.gpus else ()
    return {
        "driver": found[0].driver if found else None,
        "gpus": [asdict(gpu) for gpu in found],
        "product_s": [rank.product_s for rank in report.ranks],
        "all_reduce_s": [rank.all_reduce_s for rank in report.ranks],
        "errors": [rank.error for rank in report.ranks if rank.error],
    }


def _why(faults: Mapping[str, Sequence[Fault]], is_common: bool) -> str:
    if not faults:
        return "the nodes waited for each other in vain, and nothing tells which one is to blame"
    named = [f"{node}: {'; '.join(fault.value for fault in one)}" for node, one in faults.items()]
    end = " (the same on every node: they are not to blame)" if is_common else ""
    return ", ".join(named) + end


def _said(
    reports: Mapping[str, NodeReport],
    faults: Mapping[str, Sequence[Fault]],
    is_ok: bool,
    elapsed_s: float,
    why: str,
) -> str:
    """For the job's log."""
    ranks = [rank for report in reports.values() for rank in report.ranks]
    products = [rank.product_s for rank in ranks if rank.product_s is not None]
    sums = [rank.all_reduce_s for rank in ranks if rank.all_reduce_s is not None]
    parts = [f"checks of {len(reports)} nodes took {elapsed_s:.1f} s"]
    if products:
        parts.append(f"matrix product {1e3 * min(products):.2f} to {1e3 * max(products):.2f} ms")
    if sums:
        parts.append(f"all-reduce {1e3 * max(sums):.2f} ms")
    lines = [", ".join(parts)]
    for node, one in faults.items():
        lines += [
            f"bad node {node} [{fault.what}]: {fault.value}. {fault.reason}; {fault.fix}"
            for fault in one
        ]
    if not is_ok and not faults:
        lines.append(f"checks failed: {why}")
    return "\n".join(lines)
