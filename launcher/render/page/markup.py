"""Small pieces of HTML that several sections are made of."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def text(value: object) -> str:
    """Anything, as text of an element or a quoted attribute; what cannot be shown is spelled out.

    Control characters, halves of surrogate pairs and marks that turn the direction of reading are
    no part of a name that a reader could see.
    """
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(value)
    )
    return html.escape(shown)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One colour of a stacked bar."""

    key: str
    """Its class in the style."""
    name: str
    value: float
    shown: str
    """The value, written for people."""


def bar(parts: Sequence[Part], whole: float, label: str, extra: str = "") -> str:
    """A horizontal bar whose full width is `whole`."""
    pieces, left = [], 0.0
    for part in parts:
        width = percent(part.value, whole)
        if width > 0:
            pieces.append(
                f'<i class="{part.key}" style="left:{left:.3f}%;width:{width:.3f}%" '
                f'title="{text(part.name)}: {text(part.shown)}"></i>'
            )
        left += width
    return f'<div class=bar role=img aria-label="{text(label)}">{"".join(pieces)}{extra}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """What the colours mean: (class, name)."""
    items = "".join(f"<li><i class={key}></i>{text(name)}</li>" for key, name in entries)
    return f"<ul class=legend>{items}</ul>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table whose first column names the row; cells are HTML, the rest of the columns figures.

    It scrolls inside its own frame where the screen is narrower than its figures.
    """
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{text(caption)}">'
        f'<table class="{kind}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def percent(value: float, whole: float) -> float:
    """Of a bar's width, between 0 and 100."""
    return min(100.0, max(0.0, 100.0 * value / whole)) if whole > 0 else 0.0


def chosen(number: int, limit: int, always: Iterable[int] = ()) -> list[int | None]:
    """Which of `number` rows are shown: all, or the first, the last and some; None marks a gap.

    chosen(9, 4) -> [0, 1, None, 7, 8]
    """
    if number <= limit:
        return list(range(number))
    half = limit // 2
    kept = sorted({*range(half), *range(number - half, number), *always})
    rows: list[int | None] = []
    for row in kept:
        if rows and rows[-1] is not None and row > rows[-1] + 1:
            rows.append(None)
        rows.append(row)
    return rows
