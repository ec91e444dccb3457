"""The whole page: its sections, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.plan.records import Plan
from launcher.render.page.markup import text
from launcher.render.page.memory import render_memory
from launcher.render.page.ranks import render_ranks
from launcher.render.page.style import render_style
from launcher.render.page.summary import (
    render_decisions,
    render_head,
    render_step,
    render_traffic,
    render_warnings,
)
from launcher.render.page.timeline import render_timeline

GENERATOR = '<meta name="generator" content="launch plan --html">'
"""In the head of every page: how a file of ours is known."""

# Whatever a name may smuggle in, the browser loads nothing and runs nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(plan: Plan) -> str:
    """HTML of a plan; every text that a user may have written is escaped."""
    run = plan.run
    sections = (
        ("warnings", "Warnings", "", render_warnings(plan)),
        (
            "step",
            "Where the step&rsquo;s time goes",
            "One optimizer step on the busiest stage.",
            render_step(plan),
        ),
        (
            "pipeline",
            "Pipeline",
            "The schedule that will run, simulated with this plan&rsquo;s times.",
            render_timeline(plan),
        ),
        (
            "memory",
            "Memory per stage",
            "Peak of one rank, against what its device has.",
            render_memory(plan),
        ),
        (
            "ranks",
            "Ranks on nodes",
            "Which rank sits where, and which axis has to leave the node.",
            render_ranks(plan),
        ),
        (
            "communication",
            "Communication by axis",
            "What the busiest rank sends in one step; parts of it run beside the computing.",
            render_traffic(plan),
        ),
        (
            "decisions",
            "Decided for you",
            "Values that were left open, and why they became what they are.",
            render_decisions(plan),
        ),
    )
    body = "".join(_section(*section) for section in sections)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(run.model.name)} on {text(run.hardware.name)} · plan</title>\n"
        f"<style>{render_style()}</style></head>\n<body>\n"
        f"{render_head(plan)}<main>{body}</main>\n"
        "<footer>Predicted from the configuration alone; nothing was run.</footer>\n"
        "</body></html>\n"
    )


def _section(name: str, title: str, lead: str, content: Iterable[str]) -> str:
    said = f"<p class=lead>{lead}</p>" if lead else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f"{said}{''.join(content)}</section>\n"
    )
