"""What the verbs on a submitted job do: `status`, `logs` and `cancel`."""

from __future__ import annotations

import json as json_module
import sys
from typing import Any

from launcher.commands import Request
from launcher.errors import EXIT_DONE, EXIT_RUN_FAILED, ConfigError, Finding, LaunchError

_ENDS_S = 300.0


def status(request: Request) -> int:
    """How a run is; exit code 1 where it ended badly."""
    from launcher.submit.find_run import find_runs
    from launcher.submit.status import read_status, status_json
    from launcher.submit.status_text import render_row, render_status

    found = [read_status(files) for files in find_runs(request.operands[0])]
    if request.json:
        documents = [status_json(one) for one in found]
        _print_json(documents[0] if len(found) == 1 else {"runs": documents})
    elif len(found) == 1:
        print(render_status(found[0]))
    else:
        print("\n".join(render_row(one) for one in found))
    return EXIT_RUN_FAILED if any(one.is_bad_end for one in found) else EXIT_DONE


def logs(request: Request) -> int:
    """The ends of the logs that matter; with --follow what is written until the job is over."""
    from launcher.submit.find_run import find_run
    from launcher.submit.logs import choose_logs, follow_logs, logs_json, read_logs, render_logs
    from launcher.submit.status import read_status

    files = find_run(request.operands[0])
    flags = request.flags
    if flags["lines"] is not None and flags["lines"] < 0:
        reason = "a number of lines is 0, for all, or more"
        raise ConfigError(
            [Finding(field="--lines", value=flags["lines"], rule="out-of-range", reason=reason)]
        )
    now = read_status(files)
    paths = choose_logs(files, now, flags["rank"])
    parts = read_logs(paths, flags["lines"])
    if request.json:
        _print_json(logs_json(files, parts))
        return EXIT_DONE
    if parts:
        print(render_logs(parts), flush=True)
    else:
        print(f"nothing is in {files.logs} yet", file=sys.stderr)
    if flags["follow"] and now.is_live:
        follow_logs(
            lambda: choose_logs(files, read_status(files), flags["rank"]),
            lambda: not read_status(files).is_live,
        )
    return EXIT_DONE


def cancel(request: Request) -> int:
    """End the job of every run that is meant; it does not start again."""
    from launcher.submit.cancel import cancel as cancel_run
    from launcher.submit.find_run import find_runs

    timeout_s = request.flags["timeout"]
    results: list[dict[str, Any]] = []
    errors: list[LaunchError] = []
    for files in find_runs(request.operands[0]):
        entry: dict[str, Any] = {"run_dir": str(files.root)}
        try:
            patience_s = _ENDS_S if timeout_s is None else float(timeout_s)
            entry |= {
                "cancelled": True,
                "said": cancel_run(files, patience_s, request.flags["now"]),
            }
            print(entry["said"], file=sys.stderr if request.json else sys.stdout, flush=True)
        except LaunchError as error:
            entry |= {"cancelled": False, "said": str(error)}
            errors.append(error)
        results.append(entry)
    if request.json:
        _print_json(results[0] if len(results) == 1 else {"runs": results})
    for error in errors:
        print(error, file=sys.stderr)
    # Of a sweep some tasks may have ended already: that is no error while any was cancelled.
    if errors and not any(entry["cancelled"] for entry in results):
        return max(error.exit_code for error in errors)
    return EXIT_DONE


def _print_json(document: dict[str, Any]) -> None:
    print(json_module.dumps(document, indent=1))
