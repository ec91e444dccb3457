"""Does every package import only from its left, and heavy libraries only where they belong?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "launcher"
# errors < data < config < plan < checkpoint < convert < render < submit < cli; runtime beside them.
MAY_IMPORT = {
    "frozen": set(),
    "errors": set(),
    "data": {"errors"},
    "config": {"errors", "data"},
    "plan": {"errors", "config"},
    "checkpoint": {"errors", "config", "plan"},
    "convert": {"errors", "config", "plan", "checkpoint"},
    "failure": {"errors", "config", "plan"},
    "node": {"errors", "config", "plan", "checkpoint", "failure"},
    "render": {"errors", "config", "plan"},
    "submit": {"errors", "config", "plan", "checkpoint", "failure", "node", "render"},
    "runtime": {"errors", "data", "config", "plan", "checkpoint", "convert"},
    "completion": {"errors", "data", "config"},
    "jobs": {"errors", "config", "plan", "checkpoint", "render", "submit"},
    "slurm_jobs": {"jobs", "errors", "config", "plan", "convert", "render", "submit"},
    "commands": {
        "jobs",
        "slurm_jobs",
        "errors",
        "data",
        "config",
        "plan",
        "checkpoint",
        "convert",
        "render",
        "submit",
        "completion",
    },
    "run_commands": {
        "commands",
        "slurm_jobs",
        "jobs",
        "errors",
        "config",
        "plan",
        "checkpoint",
        "render",
        "submit",
    },
    "job_commands": {"commands", "errors", "submit"},
    "table_commands": {"commands", "errors", "config", "plan", "submit"},
    "search_commands": {"commands", "errors", "config", "plan"},
    "flags": {"commands", "errors", "config"},
    "cli": {
        "errors",
        "config",
        "flags",
        "commands",
        "job_commands",
        "run_commands",
        "search_commands",
        "table_commands",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
# What every package may import besides: how records are made.
BY_ALL = {"frozen"}
# Library -> where it may be imported: a package or a file.
BELONGS_TO = {
    "torch": ("runtime",),
    "deepspeed": ("runtime",),
    "numpy": ("runtime", "checkpoint", "convert", "data"),
    "xxhash": ("checkpoint",),
    "hydra": ("config/compose.py",),
    "omegaconf": ("config",),
    "pydantic": ("config",),
    "subprocess": ("submit", "node"),
    "rich": ("submit",),
}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from launcher import commands` imports launcher.commands.
            for alias in node.names:
                is_package = node.module == "launcher"
                yield f"launcher.{alias.name}" if is_package else str(node.module)


def package_of(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def violations(file: str, source: str) -> list[str]:
    found = []
    own = package_of(file)
    for module in imported_modules(source):
        top, _, rest = module.partition(".")
        if top == "launcher":
            package = rest.partition(".")[0]
            is_name = not (ROOT / package).is_dir() and not (ROOT / f"{package}.py").is_file()
            if (
                package
                and package != own
                and not is_name
                and package not in MAY_IMPORT[own] | BY_ALL
            ):
                found.append(f"{own} imports {module}")
        elif not any(file.startswith(place) for place in BELONGS_TO.get(top, ("",))):
            found.append(f"{file} imports {module}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_obey_the_order(file):
    assert violations(file, (ROOT / file).read_text(encoding="utf-8")) == []


def test_every_package_has_its_place_in_the_order():
    assert {package_of(file) for file in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("plan/x.py", "from launcher.render.bundle import Bundle", "plan imports launcher.render"),
        ("config/x.py", "import launcher.plan.mesh", "config imports launcher.plan.mesh"),
        ("errors.py", "from launcher.config import schema", "errors imports launcher.config"),
        ("runtime/x.py", "from launcher.submit import local", "runtime imports launcher.submit"),
        ("render/x.py", "def f():\n    import torch", "render/x.py imports torch"),
        ("plan/x.py", "import numpy.linalg", "plan/x.py imports numpy.linalg"),
        ("config/load.py", "from hydra import compose", "config/load.py imports hydra"),
        ("runtime/x.py", "import subprocess", "runtime/x.py imports subprocess"),
        ("cli.py", "from launcher import submit", "cli imports launcher.submit"),
        ("plan/x.py", "if TYPE_CHECKING:\n    import torch", "plan/x.py imports torch"),
    ],
)
def test_a_forbidden_import_is_caught(file, source, found):
    (violation,) = violations(file, source)
    assert violation.startswith(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("runtime/x.py", "import torch\nfrom launcher.plan.mesh import build_mesh"),
        ("config/compose.py", "from hydra import compose"),
        ("cli.py", "from launcher import __version__, commands"),
        ("submit/x.py", "import subprocess\nfrom launcher.render.bundle import Bundle"),
    ],
)
def test_an_allowed_import_passes(file, source):
    assert violations(file, source) == []


def test_a_relative_import_is_caught():
    with pytest.raises(AssertionError, match="absolute"):
        violations("plan/x.py", "from . import mesh")
