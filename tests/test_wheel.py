"""An installed wheel carries its configs and works from any directory."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`launch` of a new environment that has the wheel, and this one's libraries."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin" / "python"


def run(python: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-E", "-c", code], cwd=cwd, capture_output=True, text=True)


def test_the_wheel_carries_every_config_recipe_and_template(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "slurm"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert f"launcher/_assets/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"launcher/_assets/conf/recipe/{path.name}" in names


def test_the_installed_launcher_is_not_the_checkout(installed, tmp_path):
    result = run(installed, "import launcher; print(launcher.__file__)", tmp_path)
    assert str(installed.parent.parent) in result.stdout, result.stderr


def test_it_plans_and_renders_from_another_directory(installed, tmp_path):
    code = "import sys; from launcher.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["plan", "--json", "recipe=llama3_8b_h100x64"]
    result = subprocess.run(
        [str(installed), "-E", "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["layout"]["world_size"] == 64
    words = ["--dry-run", "launch=slurm", "hardware=h100x64"]
    result = subprocess.run(
        [str(installed), "-E", "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "#SBATCH --nodes=8" in result.stdout
    assert list(tmp_path.iterdir()) == []
