"""Where conf/, recipes/ and slurm/ lie: in the repository, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def assets_dir() -> Path:
    """The folder that holds `conf` and `slurm`."""
    installed = PACKAGE / "_assets"
    return installed if installed.is_dir() else PACKAGE.parent


def conf_dir() -> Path:
    """The primary Hydra config folder; recipes are its group `recipe`."""
    return assets_dir() / "conf"


def slurm_templates() -> dict[str, str]:
    """Texts of slurm/*.sbatch by file name without its end."""
    folder = assets_dir() / "slurm"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.sbatch"))}
