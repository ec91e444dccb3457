"""What the shell offers after TAB: verbs, flags, groups, options, keys and their choices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from launcher.config.assets import conf_dir
from launcher.config.compose import compose_run
from launcher.config.validate import choices_at
from launcher.errors import ConfigError, Finding

# bash breaks words at "=" unless told otherwise: then only what follows it is offered.
_BASH = """\
_launch_complete() {
    local line="${COMP_LINE:0:$COMP_POINT}"
    local word="${line##* }" shown="" IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$line" launch -sc query=bash 2>/dev/null))
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        shown="${word%=*}="
        COMPREPLY=("${COMPREPLY[@]#"$shown"}")
    fi
}
complete -o nospace -o default -F _launch_complete launch
"""
_ZSH = """\
_launch() {
    local -a found
    found=("${(@f)$(COMP_LINE="$LBUFFER" launch -sc query=zsh 2>/dev/null)}")
    compadd -S '' -a found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _launch launch
"""
_FISH = """\
complete -c launch -f -a '(COMP_LINE=(commandline -cp) launch -sc query=fish 2>/dev/null)'
"""
_REMOVE_BASH = "complete -r launch\nunset -f _launch_complete\n"
_REMOVE_ZSH = "compdef -d launch\nunfunction _launch\n"
_REMOVE_FISH = "complete -e -c launch\n"
SCRIPTS = {
    "install=bash": _BASH,
    "install=zsh": _ZSH,
    "install=fish": _FISH,
    "uninstall=bash": _REMOVE_BASH,
    "uninstall=zsh": _REMOVE_ZSH,
    "uninstall=fish": _REMOVE_FISH,
}
_ON_A_RUN = ("resume", "checkpoints", "checkpoint")
"""Verbs whose first word is a run."""
_QUERIES = ("query=bash", "query=zsh", "query=fish")


def answer_completion(command: str, line: str, verbs: Sequence[str], flags: Sequence[str]) -> str:
    """Text for `-sc COMMAND`: shell code for install and uninstall, one candidate a line for query.

    Args:
        command: `install=bash` and the like.
        line: what was typed up to the cursor, the program's name included.
        verbs: first words that the command line knows.
        flags: its flags.

    """
    if command in SCRIPTS:
        return SCRIPTS[command]
    if command in _QUERIES:
        return "".join(f"{word}\n" for word in complete_line(line, verbs, flags))
    raise ConfigError(
        [
            Finding(
                field="--shell-completion",
                value=command,
                rule="unknown-value",
                reason="no such shell or action",
                legal=tuple(SCRIPTS),
                fix="-sc install=bash",
            )
        ]
    )


def complete_line(line: str, verbs: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Candidates for the last word of a line, which may be empty, as whole words."""
    _, *words = line.split(" ")
    *before, word = words or [""]
    before = [other for other in before if other]
    if before[:1] == ["tokenize"]:
        from launcher.data.command import flags as own_flags

        return [flag for flag in own_flags() if word and flag.startswith(word)]
    if word.startswith("-"):
        return [flag for flag in sorted(flags) if flag.startswith(word)]
    if before and before[-1] in ("--run-dir", "--config-dir", "-cd"):
        return []  # The shell offers files.
    if len(before) == 1 and before[0] in _ON_A_RUN:
        return _runs(word)  # The shell offers other folders.
    first = [] if before else [verb for verb in verbs if verb.startswith(word)]
    trees = _config_dirs(before)
    mark = word[: len(word) - len(word.lstrip("+~"))]
    found = _overrides(word.lstrip("+~"), before, trees)
    if mark == "~":  # A key is deleted by its name alone.
        found = [candidate.rstrip("=") for candidate in found]
    return first + [mark + candidate for candidate in found]


def _runs(word: str) -> list[str]:
    """Run directories under runs/, by name or by path."""
    names = sorted(path.parent.name for path in Path("runs").glob("*/run.yaml"))
    return [text for name in names for text in (name, f"runs/{name}") if text.startswith(word)]


def _overrides(word: str, before: Sequence[str], trees: Sequence[Path]) -> list[str]:
    """Options and choices after `key=`, else groups and keys one level at a time."""
    key, equals, _ = word.partition("=")
    if equals:
        known = _options(key, trees) or choices_at(tuple(key.split(".")))
        return [f"{key}={choice}" for choice in known if f"{key}={choice}".startswith(word)]
    groups = [f"{group}=" for group in _groups(trees) if group.startswith(word)]
    return sorted({*groups, *_keys(word, before, trees)})


def _keys(word: str, before: Sequence[str], trees: Sequence[Path]) -> list[str]:
    """`train.st` -> train.steps=;  `tr` -> train."""
    try:
        node: Any = compose_run([other for other in before if "=" in other], trees).values
    except ConfigError:
        return []
    *parents, start = word.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return []
    prefix = "".join(f"{parent}." for parent in parents)
    return [
        f"{prefix}{name}{'.' if isinstance(value, dict) else '='}"
        for name, value in node.items()
        if str(name).startswith(start)
    ]


def _config_dirs(words: Sequence[str]) -> list[Path]:
    """Folders that the line names with --config-dir."""
    named = [after for word, after in pairwise(words) if word in ("--config-dir", "-cd")]
    named += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return [Path(folder) for folder in named if Path(folder).is_dir()]


def _options(group: str, trees: Sequence[Path]) -> list[str]:
    folders = [root / group for root in (conf_dir(), *trees)]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _groups(trees: Sequence[Path]) -> list[str]:
    found = {
        path.parent.relative_to(root).as_posix()
        for root in (conf_dir(), *trees)
        for pattern in ("*/*.yaml", "*/*/*.yaml")
        for path in root.glob(pattern)
    }
    return sorted(found)
