"""Does TAB offer what can be typed, in a real shell too?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli
from launcher.completion import SCRIPTS, answer_completion, complete_line
from launcher.errors import ConfigError
from launcher.flags import build_parser
from tests.config.trees import write_tree

ROOT = Path(__file__).resolve().parents[1]
FLAGS = build_parser().flags()


def offered(line: str) -> list[str]:
    return complete_line(line, list(cli._VERBS), FLAGS)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("launch pl", ["plan"]),
        ("launch plan model=llama3_", [f"model=llama3_{size}b" for size in (1, 3, 405, 70, 8)]),
        ("launch model=llama3_", [f"model=llama3_{size}b" for size in (1, 3, 405, 70, 8)]),
        ("launch plan hardware=h100x8 parallelism=pp_",
         ["parallelism=pp_1f1b", "parallelism=pp_gpipe"]),
        ("launch plan optim", ["optimizer.", "optimizer="]),
        ("launch plan hardware/", ["hardware/gpu=", "hardware/network=", "hardware/node="]),
        ("launch plan hardware/gpu=h",
         ["hardware/gpu=h100_96gb_hbm2e", "hardware/gpu=h100_pcie_80gb", "hardware/gpu=h100_sxm",
          "hardware/gpu=h20", "hardware/gpu=h200_sxm", "hardware/gpu=h800_sxm"]),
        ("launch plan train.st", ["train.steps="]),
        ("launch plan model=tiny ~train.se", ["~train.seed", "~train.sequence_length"]),
        ("launch plan ++train.see", ["++train.seed="]),
        ("launch plan model.norm=", ["model.norm=layernorm", "model.norm=rmsnorm"]),
        ("launch plan hardware=h100x8 hardware.gpu.peak_flops.f",
         ["hardware.gpu.peak_flops.fp32=", "hardware.gpu.peak_flops.fp8="]),
        ("launch plan parallelism.schedule=g", ["parallelism.schedule=gpipe"]),
        ("launch plan --js", ["--json"]),
        ("launch plan --json model=tin", ["model=tiny"]),
        ("launch plan oops=1 a.b model=tin", ["model=tiny"]),
        ("launch plan model=zzz train.step", ["train.steps="]),
        ("launch plan train.steps=", []),
        ("launch plan zzz", []),
        ("launch plan a.b.c.", []),
        ("launch plan train.steps.x.", []),
        ("launch plan --run-dir ", []),
    ],
)  # fmt: skip
def test_candidates(line, wanted):
    assert offered(line) == wanted


def test_runs_are_offered_to_the_verbs_on_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a1", "a2", "b"):
        write_tree(tmp_path / "runs" / name, run="name: x\n")
    assert offered("launch resume a") == ["a1", "a2"]
    assert offered("launch checkpoints runs/a") == ["runs/a1", "runs/a2"]
    assert offered("launch checkpoint b") == ["b"]
    assert offered("launch resume a1 train.st") == ["train.steps="]
    assert offered("launch resume a1 --from") == ["--from-scratch"]


def test_an_empty_word_offers_verbs_and_groups():
    found = offered("launch ")
    assert set(cli._VERBS) < set(found)
    assert {"model=", "hardware=", "train."} < set(found)
    assert "plan" not in offered("launch plan ")


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "-cd {}"])
def test_options_of_an_own_conf_tree_are_offered(tmp_path, flag):
    write_tree(tmp_path, model__mine="name: mine\n", extra__one="a: 1\n")
    line = f"launch plan {flag.format(tmp_path)}"
    assert offered(f"{line} model=min") == ["model=mine"]
    assert offered(f"{line} ext") == ["extra="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_to_install_and_to_remove(shell):
    assert "launch" in answer_completion(f"install={shell}", "", [], [])
    assert "launch" in answer_completion(f"uninstall={shell}", "", [], [])
    assert answer_completion(f"query={shell}", "launch pl", ["plan"], []) == "plan\n"


def test_another_shell_is_a_finding():
    with pytest.raises(ConfigError, match=r"--shell-completion=install=csh \[unknown-value\]"):
        answer_completion("install=csh", "", [], [])


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A folder with `launch` as it is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "launch"
    code = "import sys; from launcher.cli import main; sys.exit(main())"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    return folder


# What bash does at TAB: it breaks the line into words at spaces and COMP_WORDBREAKS, calls the
# function, and puts COMPREPLY in the place of the last word.
_PRESS_TAB = """
eval "$(launch -sc install=bash)"
complete -p launch > /dev/null || exit 9
press_tab() {
    COMP_LINE="$1" COMP_POINT="${#1}"
    read -ra COMP_WORDS <<< "${1//=/ = }"
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    COMPREPLY=()
    _launch_complete launch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\\n' "${COMPREPLY[@]}"
}
press_tab "$LINE"
"""


def press_tab(bin_dir: Path, line: str, setup: str = "") -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", setup + _PRESS_TAB],
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "LINE": line},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_what_follows_the_equals_sign(bin_dir):
    """bash itself breaks words at `=`: candidates for the word after it are bare options."""
    setup = "COMP_WORDBREAKS=$' \\t\\n\"><=;|&(:'\n"
    found = press_tab(bin_dir, "launch plan model=ll", setup)
    assert found == ["llama2_13b", "llama2_70b", "llama2_7b",
                     "llama3_1b", "llama3_3b", "llama3_405b", "llama3_70b",
                     "llama3_8b", "llama4_maverick", "llama4_scout"]  # fmt: skip


def test_bash_completes_whole_words_where_equals_signs_do_not_break_them(bin_dir):
    setup = "COMP_WORDBREAKS=$' \\t\\n'\n"
    assert press_tab(bin_dir, "launch plan model=tin", setup) == ["model=tiny"]


def test_bash_completes_in_the_middle_of_a_line(bin_dir):
    assert press_tab(bin_dir, "launch pl") == ["plan"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_parse(shell):
    """In the shells that this machine has; bash is always there."""
    if shell != "bash" and shutil.which(shell) is None:
        return
    for action in ("install", "uninstall"):
        subprocess.run([shell, "-n"], input=SCRIPTS[f"{action}={shell}"], text=True, check=True)


def test_a_completion_removed_is_gone(bin_dir):
    script = (
        'eval "$(launch -sc install=bash)"; eval "$(launch -sc uninstall=bash)"; '
        "complete -p launch 2>/dev/null; declare -F _launch_complete"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"}, timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
