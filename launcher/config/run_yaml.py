"""Reads the run.yaml of a run directory back, with findings for what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from launcher.config.schema import Run
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding


def read_run(path: Path, way_out: str = "") -> Run:
    """The run that a file holds.

    Raises ConfigError where it cannot be read, is no YAML or not a run; `way_out` is the fix that
    its findings name.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([_unreadable(path, str(error.strerror), way_out)]) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "it"
        raise ConfigError([_unreadable(path, f"{where} is not YAML", way_out)]) from error
    if not isinstance(values, dict):
        raise ConfigError([_unreadable(path, "it holds no configuration", way_out)])
    run, findings = validate_run(values)
    if run is None:
        raise ConfigError(
            [
                replace(finding, field=f"{path}: {finding.field}", rule="run-readable", fix=way_out)
                for finding in findings
            ]
        )
    return run


def _unreadable(path: Path, reason: str, way_out: str) -> Finding:
    return Finding(field=str(path), rule="run-readable", reason=reason, fix=way_out)
