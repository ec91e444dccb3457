"""A module that is loaded when it is used: nobody sees the difference."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys
from launcher.late_import import METADATA, import_late
import_late(*METADATA)
assert "email" not in sys.modules
"""
USES = [
    "import importlib.metadata\nassert importlib.metadata.version('pydantic')",
    "import importlib.metadata as metadata\nassert metadata.version('pydantic')",
    "from importlib import metadata\nassert metadata.version('pydantic')",
    "from importlib.metadata import version\nassert version('pydantic')",
    """
import importlib.metadata
try:
    importlib.metadata.version("no-such-package")
except importlib.metadata.PackageNotFoundError:
    pass
assert importlib.metadata.__file__
""",
]


@pytest.mark.parametrize("use", USES)
def test_every_way_to_use_it_gets_the_module_itself(use):
    done = subprocess.run([sys.executable, "-c", BEGIN + use], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
