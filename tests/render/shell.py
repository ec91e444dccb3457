"""Hostile text, and programs that write down how a script called them."""

from __future__ import annotations

HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "a' ; touch PWNED ; '",
    'a" ; touch PWNED ; "',
    "$HOME && touch PWNED",
    "\\",
    "\\'\\\"",
    "a b  c",
    "%j %% %x",
    "--job-name=other",
    "-rf /",
    "*?[a]",
    "é 日本",
    "!history",
    "{a,b}",
    "#",
]
# A program in the place of python, srun and scontrol: it writes down how it was called.
RECORDER = """#!/bin/sh
{ printf '%s' "$(basename "$0")"; for word in "$@"; do printf '\\037%s' "$word"; done; echo; } \
    >> "$RECORD"
case "$*" in *" agent "* | *" host") env > "$RECORD.env";; esac
"""
