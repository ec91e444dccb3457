"""Where the `launch` command enters: prepares a quick start and hands over to the command line."""

from __future__ import annotations

import gc
import os
import sys


def main() -> int:
    """Entry point of `launch` and of `python -m launcher`; returns the exit code."""
    # Start-up only allocates what it keeps, so that collecting garbage is a tenth of its time for
    # nothing; `commands` turns it on again before it follows a run.
    gc.disable()
    # Plugins of other packages have no say in our schema; looking for them costs 10 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from launcher.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
