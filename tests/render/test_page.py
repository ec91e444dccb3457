"""The page of a plan: complete, closed in itself, readable in a real browser at any width."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from launcher.plan.build import build_plan
from launcher.plan.records import Learned, Warning
from launcher.render.page import render_page
from launcher.render.page.markup import chosen
from launcher.render.page.style import CHUNK_SHADES, DARK, FILLS, LIGHT, USES, towards_white
from tests.browser import Browser, find_browser
from tests.factory import LLAMA3_70B, TINY, h100, make_run
from tests.plan.cases import GPT3_175B, LLAMA3_405B

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202egnp"
CLUSTER = {"tp": 8, "pp": 16, "dp": 128, "recompute": "full"}
PLANS = {
    "tiny": lambda: make_run(parallelism={"tp": 2, "pp": 2, "dp": 1}),
    "70b": lambda: make_run(model=LLAMA3_70B, hardware=h100(8), parallelism={"tp": 8, "pp": 4,
        "dp": 2}, **{"train.num_microbatches": 32}),
    "v": lambda: make_run(model=LLAMA3_70B, hardware=h100(8), parallelism={"tp": 8, "pp": 4,
        "dp": 2, "vpp": 2, "schedule": "dualpipev"}, **{"train.num_microbatches": 16}),
    "405b": lambda: make_run(model=LLAMA3_405B, hardware=h100(2048), parallelism=CLUSTER,
        precision={"name": "bf16", "compute": "bf16"}, **{"train.num_microbatches": 512}),
    "96 stages": lambda: make_run(model=GPT3_175B, hardware=h100(96), parallelism={"tp": 8,
        "pp": 96, "dp": 1}, **{"train.num_microbatches": 8}),
    "too big": lambda: make_run(model=LLAMA3_405B, hardware=h100(1), parallelism={"tp": 8}),
    "hostile": lambda: make_run(model=TINY | {"name": HOSTILE}),
}  # fmt: skip
LEARNED = Learned(
    table="runs/measured_runs.csv", runs=12, alike="on this hardware over the same axes",
    step_ratio=1.31, step_ratio_range=(1.2, 1.4), memory_ratio=1.02, step_s=123.456,
    tokens_per_s=1.0, peak_bytes=1,
)  # fmt: skip
SECTIONS = ["warnings", "step", "pipeline", "memory", "ranks", "communication", "decisions"]


@pytest.fixture(scope="module")
def plans():
    """A page is never made without a warning and a decision to show."""
    return {
        name: replace(
            build_plan(run()),
            warnings=(Warning(id="odd", message=f"a {HOSTILE}", fix="parallelism.tp=4"),),
            decisions=("dp=2: the other devices", HOSTILE),
            learned=LEARNED if name in ("tiny", "405b") else None,
        )
        for name, run in PLANS.items()
    }


@pytest.fixture(scope="module")
def pages(plans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in plans}
    for name, path in paths.items():
        path.write_text(render_page(plans[name]), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = find_browser()
    if binary is None:
        pytest.skip("needs a Chromium on PATH (apt-get install chromium)")
    with Browser(binary, tmp_path_factory.mktemp("profile")) as started:
        yield started


# Without a browser


@pytest.mark.parametrize("name", PLANS)
def test_a_page_has_every_section_and_asks_for_nothing(pages, name):
    page = pages[name].read_text(encoding="utf-8")
    assert re.findall(r"<section id=\"(\w+)\"", page) == SECTIONS
    assert not re.search(r"<(script|link|img|iframe|object)|url\(|@import|\bon\w+=\"", page)
    assert "http" not in page.replace("http-equiv", "")


def test_a_hostile_name_is_text(pages):
    page = pages["hostile"].read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page, "a name does not turn the direction of reading"


def test_a_page_of_16384_ranks_and_512_microbatches_is_small(pages):
    assert pages["405b"].stat().st_size < 1_000_000
    page = pages["405b"].read_text(encoding="utf-8")
    assert "1,024 actions per stage. That is more than a screen can show" in page
    assert "2,048 nodes" in page


def test_the_same_plan_gives_the_same_page(plans):
    assert render_page(plans["70b"]) == render_page(plans["70b"])


def test_a_page_shows_the_plan_s_figures(plans, pages):
    page = pages["70b"].read_text(encoding="utf-8")
    plan = plans["70b"]
    assert f"{plan.time.mfu:.1%}" in page
    for used in plan.memory.per_stage:
        assert f"{used.total_bytes / 2**30:,.1f} GiB" in page
    assert ("does not fit" in page) == (not plan.memory.fits)
    assert "does not fit" in pages["too big"].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["tiny", "70b", "v"])
def test_every_action_is_drawn_where_there_is_room(plans, pages, name):
    layout = plans[name].layout
    page = pages[name].read_text(encoding="utf-8")
    kinds = 3 if layout.schedule == "dualpipev" else 2
    drawn = re.findall(r"<title>[FBW]\d+", page)
    assert len(drawn) == layout.pp * layout.num_microbatches * layout.vpp * kinds


def test_a_page_shows_what_earlier_runs_let_expect(pages):
    assert "<dt>as measured</dt><dd>123.46 s</dd>" in pages["tiny"].read_text()
    assert "1.31, 12 runs on this hardware over the same axes" in pages["tiny"].read_text()
    assert "as measured" not in pages["70b"].read_text()


def test_rows_are_left_out_in_the_middle_only():
    assert chosen(4, 4) == [0, 1, 2, 3]
    assert chosen(9, 4) == [0, 1, None, 7, 8]
    assert chosen(9, 4, always=(4,)) == [0, 1, None, 4, None, 7, 8]
    assert chosen(9, 4, always=(2,)) == [0, 1, 2, None, 7, 8]


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2: 4.5 for text, 3 for shapes."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_fills_stand_out_from_the_panel_and_carry_dark_numbers(scheme):
    for use in USES:
        fill = FILLS[USES[use]]
        assert contrast(fill, scheme["panel"]) >= 2.9, use
        for share in CHUNK_SHADES:
            assert contrast(towards_white(fill, share), "#10151d") >= 4.5, use


# In a browser

TEXT_CONTRAST = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || e.closest('svg, .lane') || !e.offsetParent) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(walker.currentNode.data);
  }
  return poor;
})()
"""
# Texts of one row that lie over each other, or stick out of their section.
MISPLACED = """
(() => {
  const found = [];
  for (const e of document.querySelectorAll('h1,h2,h3,h4,p,dt,dd,li,.name,.value,.bar,.lane')) {
    const box = e.getBoundingClientRect(), home = e.closest('section,header,footer');
    const edge = home.getBoundingClientRect();
    if (box.right > edge.right + 1 || box.left < edge.left - 1) found.push(e.textContent);
  }
  for (const row of document.querySelectorAll('.bars .row, .time .row, .ticks')) {
    const boxes = [...row.children].filter(e => e.textContent.trim() && e.offsetParent)
      .map(e => e.getBoundingClientRect());
    for (const [i, a] of boxes.entries()) for (const b of boxes.slice(i + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) found.push(row.textContent);
  }
  return found;
})()
"""


@pytest.mark.parametrize("width", [1600, 820, 390, 320])
@pytest.mark.parametrize("name", PLANS)
def test_a_page_keeps_to_its_window(browser, pages, name, width):
    browser.show(pages[name], width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(MISPLACED) == []


def test_on_a_telephone_only_the_table_of_bytes_scrolls(browser, pages):
    browser.show(pages["405b"], width=390)
    scrolling = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => e.getAttribute('aria-label'))"
    )
    assert scrolling == ["Bytes by kind, in GiB"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PLANS)
def test_a_page_can_be_read_in_both_schemes_without_errors_or_requests(
    browser, pages, name, scheme
):
    browser.show(pages[name], width=1200, scheme=scheme)
    assert browser.evaluate(TEXT_CONTRAST) == []
    shown = browser.evaluate("[...document.querySelectorAll('section')].map(e => e.id)")
    assert shown == SECTIONS
    heights = browser.evaluate(
        "[...document.querySelectorAll('section, .bar, .cells, .map')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 10, "nothing has collapsed"
    said = [e for e in browser.events if e["method"] in
            ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]  # fmt: skip
    asked = [e["params"]["request"]["url"] for e in browser.events
             if e["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert said == []
    assert asked == [pages[name].as_uri()]


def test_the_schemes_differ(browser, pages):
    backgrounds = set()
    for scheme in ("light", "dark"):
        browser.show(pages["tiny"], width=800, scheme=scheme)
        backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_a_hostile_name_reads_as_it_was_written(browser, pages):
    browser.show(pages["hostile"], width=800)
    title = browser.evaluate("document.querySelector('h1').firstChild.data.trim()")
    assert title == HOSTILE.replace("\u202e", "\\u202e")
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 0


def test_every_drawing_has_a_name_for_screen_readers(browser, pages):
    browser.show(pages["405b"], width=1200)
    nameless = browser.evaluate(
        "[...document.querySelectorAll('[role=img], [role=region], section')]"
        ".filter(e => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).length"
    )
    assert nameless == 0


@pytest.mark.parametrize("name", ["70b", "405b"])
def test_a_page_prints(browser, pages, name):
    browser.show(pages[name], width=1200, scheme="dark")
    printed = browser.call("Page.printToPDF", printBackground=True, paperWidth=8.27,
                           paperHeight=11.69)  # fmt: skip
    assert len(printed["data"]) > 10_000
    browser.show(pages[name], width=700, media="print", scheme="dark")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        f"rgb({', '.join(str(int(LIGHT['page'][i : i + 2], 16)) for i in (1, 3, 5))})"
    ), "paper is light"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 700


def test_the_page_says_error_bar_cost_and_where_experts_are():
    experts = {"num_experts": 8, "experts_per_token": 2, "ffn_hidden_size": 256}
    run = make_run(model=TINY | {"experts": experts},
                   hardware=h100(2) | {"price_per_gpu_hour": 3600.0},
                   parallelism={"tp": 2, "pp": 2, "dp": 4, "ep": 4})  # fmt: skip
    plan = build_plan(run)
    page = render_page(plan)
    assert page.count('<b class=error style="left:') == len(plan.stages)
    assert plan.memory.error_bytes > 0
    assert f", costs {plan.time.cost:,.2f}" in page
    # Neighbours on a stage hold different experts, ranks of tp as well.
    assert "pp 0, dp 1, tp 1, ep 3" in page
    assert re.search(r"<th scope=row>ep</th><td>4</td><td>0, 1, 2, 3</td><td>inside", page)
