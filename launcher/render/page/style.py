"""How the page looks: two colour schemes, any width, and paper."""

from __future__ import annotations

from collections.abc import Mapping

Palette = Mapping[str, str]

LIGHT: Palette = {
    "page": "#fbfbfc", "panel": "#ffffff", "line": "#dfe2e8", "text": "#1c2128",
    "muted": "#5b6472", "idle": "#eceef2", "good": "#1a7040", "bad": "#b3261e", "warn": "#fdf3dc",
    "code": "#eef0f4",
}  # fmt: skip
DARK: Palette = {
    "page": "#14171c", "panel": "#1b1f26", "line": "#333a45", "text": "#e6e9ee",
    "muted": "#a3acba", "idle": "#282d36", "good": "#5fd08c", "bad": "#ff8f85", "warn": "#33291a",
    "code": "#272d37",
}  # fmt: skip
# Fills carry dark text in both schemes; 3:1 or more against both panels.
FILLS: Palette = {
    "blue": "#5a8fe6", "teal": "#2f9e8a", "amber": "#c08a24", "rose": "#d9648c",
    "violet": "#8f7ce0", "grey": "#878f9c",
}  # fmt: skip
USES: Mapping[str, str] = {
    "compute": "blue", "communication": "rose", "optimizer": "violet", "parameters": "blue",
    "gradients": "teal", "activations": "amber", "buffers": "rose", "overhead": "grey",
    "F": "blue", "B": "teal", "W": "amber",
}  # fmt: skip
CHUNK_SHADES = (0.0, 0.18, 0.34, 0.48)
"""How far each later chunk's fill is on its way to white."""
RAMP_HUES = (212, 340)
"""From the first coordinate of an axis to its last."""


def render_style() -> str:
    """The whole style sheet."""
    return (
        _RULES
        + _fills()
        + _ramp(86, 24)
        + (
            f":root{{{_variables(LIGHT)}}}"
            f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
        )
    )


def _variables(palette: Palette) -> str:
    return "".join(f"--{name}:{value};" for name, value in palette.items())


def _fills() -> str:
    """One class per use, for boxes and drawings alike; actions in a shade per chunk."""
    rules = []
    for use, fill in USES.items():
        shades = CHUNK_SHADES if len(use) == 1 else (0.0,)
        for level, share in enumerate(shades):
            name = f"{use}{level}" if len(use) == 1 else use
            colour = towards_white(FILLS[fill], share)
            rules.append(f".{name}{{fill:{colour};background:{colour}}}")
    return "".join(rules)


def _ramp(light: int, dark: int) -> str:
    """Sixteen tints, and the same as shades."""
    first, last = RAMP_HUES
    rules = []
    for scheme, lightness in (("", light), ("dark", dark)):
        tints = "".join(
            f".r{step}{{fill:{colour};background:{colour}}}"
            for step in range(16)
            for colour in [
                f"hsl({first + (last - first) * step / 15:.0f} {55 if scheme else 70}% "
                f"{lightness + (step % 2) * (-5 if not scheme else 6)}%)"
            ]
        )
        rules.append(
            f"@media screen and (prefers-color-scheme:dark){{{tints}}}" if scheme else tints
        )
    return "".join(rules)


def towards_white(colour: str, share: float) -> str:
    """#000000 and 0.5 -> #808080."""
    parts = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1240px;padding:28px 32px 40px;background:var(--page);
color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:break-word}
h1{margin:2px 0 4px;font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.01em;
overflow-wrap:anywhere}
h1 small{font-size:inherit;font-weight:400;color:var(--muted)}
h2{margin:0;font-size:18px;font-weight:650}
h3{margin:22px 0 8px;font-size:14px;font-weight:600}
h4{margin:0 0 6px;font-size:13px;font-weight:600}
p{margin:0 0 12px}
ul,ol,dl,dd{margin:0;padding:0;list-style:none}
code{padding:1px 5px;border-radius:4px;background:var(--code);overflow-wrap:anywhere;
font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.note{color:var(--muted);font-size:13px;font-weight:400}
.kind{display:flex;align-items:center;margin:0;color:var(--muted);font-size:13px}
.spacer{flex:1}
.verdict{padding:2px 10px;border:1px solid;border-radius:99px;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
.facts{margin-bottom:12px;color:var(--muted)}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:20px;font-size:13px}
.chips li{padding:2px 9px;border:1px solid var(--line);border-radius:6px;background:var(--panel);
color:var(--muted)}
.chips b{color:var(--text);font-weight:600}
.tiles{display:flex;flex-wrap:wrap;gap:1px;border:1px solid var(--line);
border-radius:10px;overflow:hidden;background:var(--line)}
.tiles div{flex:1 1 13%;padding:13px 16px;background:var(--panel)}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{font-size:22px;font-weight:600;line-height:1.35}
.tiles .note{font-size:13px;font-weight:400;line-height:1.4}
section{margin-top:20px;padding:20px 22px 22px;border:1px solid var(--line);border-radius:10px;
background:var(--panel)}
.lead{margin:2px 0 14px;color:var(--muted);font-size:14px}
.none{margin:2px 0 0;color:var(--muted);font-size:14px}
.warnings{margin-top:12px}
.warnings li{padding:10px 14px;border-radius:6px;background:var(--warn)}
.warnings li+li{margin-top:8px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin-bottom:14px;font-size:13px}
.legend i,.sum th i{display:inline-block;width:11px;height:11px;margin-right:7px;border-radius:3px}
.bar{position:relative;height:24px;border-radius:4px;background:var(--idle);overflow:hidden}
.bar i{position:absolute;top:0;bottom:0;border-right:1px solid var(--panel)}
.bubble,.wait{background:var(--idle);box-shadow:inset 0 0 0 1px var(--line)}
#step .bar{height:32px;margin-bottom:14px}
.row{display:grid;grid-template-columns:132px minmax(0,1fr) 88px;gap:12px;align-items:center}
.row .name{font-size:13px;font-weight:600;line-height:1.25;white-space:nowrap}
.row .name .note{display:block;font-size:12px}
.row .value{font-size:13px;text-align:right;white-space:nowrap}
.bars .row{margin-bottom:6px}
.bars b{position:absolute;top:0;bottom:0;width:0;border-left:2px solid var(--text)}
.bars b.usable,.lines b.usable{border-left-style:dotted}
.bars b.error,.legend i.error{border:solid var(--text);border-width:0 1.5px}
.bars b.error{top:50%;height:8px;margin-top:-4px}
.legend i.error{position:relative;border-radius:0}
.error::after{content:"";position:absolute;left:0;right:0;top:50%;margin-top:-.75px;
border-top:1.5px solid var(--text)}
.lines{margin:2px 0 8px;text-align:right;color:var(--muted);font-size:12px}
.lines b{position:static;display:inline-block;height:11px;margin:0 6px 0 12px;vertical-align:-1px}
.gap{margin:2px 0;color:var(--muted);font-size:12px}
.time .row{grid-template-columns:64px minmax(0,1fr);gap:8px;margin-bottom:3px}
.time .name{font-weight:400}
.lane{position:relative;height:22px;border-radius:3px;background:var(--idle);overflow:hidden}
.cells{display:block;width:100%;height:100%}
.cells path{stroke:var(--panel);stroke-width:1px;vector-effect:non-scaling-stroke}
.cells.fine path{stroke:none}
.lane span{position:absolute;top:0;color:#10151d;font-size:11px;line-height:22px;
text-align:center;pointer-events:none}
.ticks{position:relative;height:20px;border-top:1px solid var(--line)}
.ticks span{position:absolute;padding-left:4px;border-left:1px solid var(--line);
color:var(--muted);font-size:12px;line-height:20px;white-space:nowrap}
.time .axis{margin:6px 0 0}
.scroll{overflow-x:auto}
.bars+.scroll,.bars+.lead+.scroll{margin-top:14px}
table{width:100%;border-collapse:collapse;font-size:13px}
caption{padding-bottom:4px;color:var(--muted);text-align:left}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;
vertical-align:top}
thead th{color:var(--muted);font-weight:400}
tbody th{font-weight:600}
th:first-child{padding-left:0;text-align:left}
td:last-child,thead th:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
th .note{margin-left:10px;white-space:normal}
.sum caption{display:none}
.sum tbody tr:last-child>*{font-weight:600}
.reach th:nth-child(3),.reach td:nth-child(3){text-align:left}
.flow .meter{display:block;width:160px;height:4px;margin:4px 0 0 auto;border-radius:2px;
background:var(--idle)}
.meter i{display:block;height:100%;margin-left:auto;border-radius:2px}
.map{display:block;width:100%;margin-bottom:4px}
.scale{display:flex;white-space:nowrap;align-items:center;gap:8px;font-size:13px;color:var(--muted)}
.chips-row{display:flex;flex:0 1 320px;height:14px;border-radius:3px;overflow:hidden}
.chips-row i{flex:1}
.nodes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,470px),1fr));
gap:14px 24px;margin-bottom:18px}
.node h4 .note{margin-left:8px}
.devices{display:grid;grid-template-columns:repeat(8,minmax(0,1fr));gap:3px}
.devices li{padding:4px 2px;border-radius:4px;text-align:center;font-size:12px;line-height:1.35}
.devices b,.devices span{display:block}
.devices b{font-weight:600}
.decisions{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:6px 18px;
margin-top:12px;font-size:14px}
footer{margin-top:18px;color:var(--muted);font-size:13px}
:focus-visible{outline:2px solid #5a8fe6;outline-offset:2px}
@media (max-width:1000px){.tiles div{flex-basis:30%}}
@media (max-width:700px){
body{padding:16px 12px 28px}
h1{font-size:24px}
section{padding:16px 14px}
.tiles div{flex-basis:40%;padding:10px 12px}.tiles dd{font-size:19px}
.bars .row{grid-template-columns:minmax(0,1fr) auto;gap:2px 8px;margin-bottom:10px}
.bars .row .bar,.bars .row .lines{grid-column:1/-1;grid-row:2}
.row .name .note{display:inline;margin-left:6px}
.time .row{grid-template-columns:48px minmax(0,1fr);gap:6px}
.time .name{font-size:11px}
.lane .wide{display:none}
.lane{height:20px}.lane span{line-height:20px}
.cells path{stroke-width:.5px}
.ticks span:nth-child(even){display:none}
th,td{padding:6px 4px}
.flow,.reach{font-size:12px}
th .note{display:block;margin-left:0}
.flow .meter{width:56px}
.devices{grid-template-columns:repeat(4,minmax(0,1fr))}
.decisions{grid-template-columns:minmax(0,1fr);gap:2px}
.decisions dd{margin-bottom:8px}
}
@media print{
@page{margin:14mm}
body{max-width:none;padding:0;font-size:11pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
section,.tiles,.node,.time{break-inside:avoid}
#pipeline,#ranks,#memory{break-inside:auto}
h2,h3{break-after:avoid}
.scroll{overflow:visible}
table{font-size:9pt}
th,td{padding:4px 5px;white-space:normal}
}
"""
