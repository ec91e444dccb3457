"""Options of groups as the command line writes them."""

from __future__ import annotations

import re

from launcher.config.quoting import hydra_text

DEFAULT_RECIPE = "quickstart"
"""Where neither a recipe nor a model nor hardware is named."""


def option_text(option: str) -> str:
    """As Hydra takes it whole: it would take an option called 7 for a number."""
    return option if re.fullmatch(r"[A-Za-z_][\w.-]*", option) else hydra_text(option)
