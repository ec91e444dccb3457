"""Which hardware a row of a table means: device, node and network, by the words of its cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from launcher.config.schema import Gpu


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Names under conf/hardware."""

    gpu: str
    node: str
    network: str
    gpus_per_node: int = 8


def _devices(gpu: str, node: str, network: str, gpus_per_node: int = 8) -> Devices:
    return Devices(gpu=gpu, node=node, network=network, gpus_per_node=gpus_per_node)


FORTY = r"(?<!\d)40(?!\d)"
"""GB of an A100; `DGX-A100-640GB` has eight of 80, one of 320 eight of 40."""

DEVICES = (
    (r"p4de", _devices("a100_80gb", "hgx_a100", "efa_400")),
    (r"p4d|a100.*p4d", _devices("a100_40gb", "hgx_a100", "efa_400")),
    (r"p5en?(?![a-z])", _devices("h200_sxm", "hgx_h100", "efa_3200")),
    (r"p5(?![a-z0-9])", _devices("h100_sxm", "hgx_h100", "efa_3200")),
    (rf"a100.*(pcie.*{FORTY}|{FORTY}.*pcie)", _devices("a100_pcie_40gb", "pcie4", "ib_hdr200")),
    (rf"a100.*({FORTY}|320 ?gb)", _devices("a100_40gb", "hgx_a100", "ib_hdr200")),
    (r"a100.*pcie", _devices("a100_pcie_80gb", "pcie4", "ib_hdr200")),
    (r"a100", _devices("a100_80gb", "hgx_a100", "ib_hdr200")),
    (r"a800", _devices("a100_80gb", "hgx_a800", "ib_hdr200")),
    (r"p3dn", _devices("v100_sxm2_32gb", "dgx1_v100", "efa_100")),
    (r"dgx-?2|v100.*sxm3", _devices("v100_sxm2_32gb", "dgx2_v100", "ib_edr100_half", 16)),
    (r"v100s?.*pcie", _devices("v100_sxm2_32gb", "pcie3", "ib_edr100_half")),
    (r"v100.*16 ?g", _devices("v100_sxm2_16gb", "dgx1_v100", "ib_edr100_half")),
    (r"v100", _devices("v100_sxm2_32gb", "dgx1_v100", "ib_edr100_half")),
    (r"mi250", _devices("mi250x_gcd", "mi250x", "slingshot_200")),
    (r"mi325", _devices("mi325x", "mi300x", "ib_ndr400")),
    (r"mi355", _devices("mi355x", "mi300x", "ib_ndr400")),
    (r"mi300(?!a)", _devices("mi300x", "mi300x", "ib_ndr400")),
    (r"gh200", _devices("gh200_96gb", "gh200", "ib_ndr400", 4)),
    (r"h100.*96.*hbm3", _devices("h100_sxm", "hgx_h100", "ib_ndr400")),
    (r"h100.*(hbm2e|96)", _devices("h100_96gb_hbm2e", "hgx_h100", "ib_ndr400")),
    (r"h100.*(pcie|nvl(?!ink))", _devices("h100_pcie_80gb", "pcie5", "ib_ndr400")),
    (r"h800", _devices("h800_sxm", "hgx_h800", "ib_ndr400")),
    (r"h100", _devices("h100_sxm", "hgx_h100", "ib_ndr400")),
    (r"h200", _devices("h200_sxm", "hgx_h100", "ib_ndr400")),
    (r"h20(?!\d)", _devices("h20", "hgx_h100", "ib_ndr400")),
    (r"gb300", _devices("gb300", "nvl72", "ib_xdr800", 4)),
    (r"b300", _devices("b300_sxm", "hgx_b200", "ib_xdr800")),
    (r"gb200", _devices("gb200", "nvl72", "ib_ndr400", 4)),
    (r"l40s", _devices("l40s", "pcie4", "roce_100")),
    (r"a40(?![0-9])", _devices("a40", "pcie4", "roce_100")),
    (r"(rtx[- ]?)?4090", _devices("rtx_4090", "pcie4", "roce_100")),
    (r"b200", _devices("b200_sxm", "hgx_b200", "ib_ndr400")),
)
"""Pattern of the gpu cell; facts of the device, of its node and of the fabric it usually has."""

EFA = {"v100": "efa_100", "a100": "efa_400"}
"""Elastic Fabric Adapters of the instances with these devices; later ones have 3,200 Gb/s."""

INSTANCES = r"(?<![a-z])(?:efa|p3dn|p4de?|p5e?n?)(?![a-z0-9-])|elastic fabric"
"""In notes: instances that have them."""

UNSTATED = r"(interconnect|network|fabric)( is|:)? (not stated|unstated|unknown|not published)"
"""A row that says so is taken to have 100 Gb/s per GPU."""


def find_devices(row: Mapping[str, str]) -> Devices | None:
    """Facts of the row's hardware, None where there are none."""
    plain = re.sub(r"^\d+ ?x ?", "", row["gpu"].lower().replace("_", "-"))
    for pattern, devices in DEVICES:
        if re.search(rf"(?<![a-z0-9]){pattern}", plain):
            words = row["notes"].lower()
            if re.search(UNSTATED, words):
                return replace(devices, network="roce_100")
            if re.search(INSTANCES, words):
                return replace(devices, network=EFA.get(devices.gpu[:4], "efa_3200"))
            return devices
    return None


def stated_memory(cell: str, gpu: Gpu) -> int | None:
    """Bytes of a variant of a device that differs in its memory: `H20-141GB`, `A100-64GB`.

    None where the cell says what the facts have, or what several of them have together.
    """
    usual = re.search(r"(\d+)GB", gpu.name)
    found = re.search(r"(?<!\d)(\d{2,3}) ?g(?:i?b)?(?![a-z])", cell.lower())
    if usual is None or found is None:
        return None
    share = int(found[1]) / int(usual[1])
    is_variant = 0.45 < share < 1.9 and abs(share - 1) > SAME_MEMORY
    return round(share * gpu.memory_bytes) if is_variant else None


SAME_MEMORY = 0.1
"""By which the memory on a device's label may miss what drivers report of it."""

RATE = r"([\d.]+) ?([GT])b(?:ps|/s|it/s)?(?![A-Za-z])"
"""Bits: `80GB` and `600 GB/s` are memory and NVLink."""

PER_NODE = r"(?:[Pp]er|/) ?(?:[Hh]ost|[Nn]ode|[Ss]erver|[Mm]achine)"
PER_GPU = r"(?:[Pp]er|/) ?(?:GPU|gpu|device|die|GCD)"

ADAPTERS = r"(?:[A-Z][\w-]* )?(?:NICs?|HCAs?|[Aa]dapters?|[Rr]ails?|[Pp]orts?)"

TIMES = r" ?[xX\u00d7] ?"

FABRICS = r"(?:TCP|Eth(?:ernet)?|IB|InfiniBand|RoCE|[HNX]DR|EFA|NICs?|HCAs?|Slingshot)\b"
"""Behind `4x100G`, which may be memory as well."""

PORTS = "(EDR|HDR100|HDR|NDR200|NDR|XDR|OPA|Omni-Path)"
NAME = r"(?:[A-Z][\w-]* ){0,2}"

STATED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"(\d+){TIMES}{NAME}{RATE}(?![^;.,]*{PER_GPU})"), "count"),
    (re.compile(rf"{RATE}(?: [A-Z][\w-]*){{0,2}}{TIMES}(\d+)(?! ?[GT]b)"), "times"),
    (
        re.compile(rf"(\d+){TIMES}(\d+) ?(G)(?:bE\b| ?{FABRICS})"),
        "count",
    ),
    (re.compile(rf"(\d+) {ADAPTERS}(?: of| at|,|:)? {RATE}(?![^;.,]*{PER_GPU})"), "count"),
    (re.compile(rf"(\d+) (?:[A-Z][\w-]* )?{RATE} {ADAPTERS}(?![^;.,]*{PER_GPU})"), "count"),
    (re.compile(rf"{RATE}[^;.,]{{0,24}}?{PER_GPU}"), "gpu"),
    (re.compile(rf"{RATE}[^;]{{0,40}}?{PER_NODE}"), "node"),
    (re.compile(rf"(\d+){TIMES}{PORTS}(?: ?100|200|400|800)?\b"), "name"),
    (re.compile(rf"{RATE} (?:Ethernet|network|TCP)"), "node"),
    (re.compile(r"(?<![\dxX\u00d7.])(\d+) ?(G)bE\b"), "node"),
    (re.compile(r"([\d.]+) ?(T)b(?:ps|/s|it/s)(?![A-Za-z])(?![^;.,]*[Ss]witch)"), "node"),
    (re.compile(r"p3\.16xlarge"), "p3"),
)  # fmt: skip
"""How notes state a network: `8x200Gb HDR IB`, `400Gb/s/GPU RoCE`, `2 Tb/s RoCE per host`,
`4 NICs of 200 Gb/s`, `8x NDR`, `25 Gbps Ethernet`, `10 GbE` or `3.2 Tb/s` of a node, `p3.16xlarge`
with 25 Gb/s."""

NAMES = {"edr": 100, "hdr100": 100, "hdr": 200, "ndr200": 200, "ndr": 400, "xdr": 800,
         "opa": 100, "omni-path": 100}  # fmt: skip
"""Gb/s of an InfiniBand port with four lanes (two for those with a number), or of Omni-Path."""


def stated_bandwidth(row: Mapping[str, str], gpus_per_node: int) -> float | None:
    """Bytes per second and GPU where the notes say so."""
    for pattern, kind in STATED:
        found = pattern.search(row["notes"])
        if found is None:
            continue
        if kind == "p3":
            return 25e9 / 8 / gpus_per_node
        if kind == "name":
            return int(found[1]) * NAMES[found[2].lower()] * 1e9 / 8 / gpus_per_node
        groups = found.groups()
        if kind == "times":
            groups = (groups[2], *groups[:2])
        rate = float(groups[-2]) * (1e12 if groups[-1] == "T" else 1e9) / 8
        if kind == "gpu":
            return rate
        return rate * (int(groups[0]) if kind in ("count", "times") else 1) / gpus_per_node
    return None


def stated_taper(row: Mapping[str, str]) -> float | None:
    """Bandwidth into leaf switches over that out of them: `2:1 oversubscribed`, `1:7 taper`."""
    words = r"(?:over-?subscri|taper|blocking)"
    number = r"(\d+(?:\.\d+)?) ?: ?(\d+(?:\.\d+)?)"
    found = re.search(rf"{number}[^;.,]{{0,12}}{words}|{words}[a-z ]{{0,12}}{number}",
                      row["notes"].lower())  # fmt: skip
    if found is None:
        return None
    sides = [float(group) for group in found.groups() if group is not None]
    return max(sides) / min(sides) if min(sides) > 0 else None


def _stated(notes: str) -> str | None:
    for pattern, _ in STATED:
        if found := pattern.search(notes):
            behind = notes[found.end() :].split(";")[0].split(",")[0][:24]
            return found[0].strip() + re.split(OTHER_WORDS, behind)[0]
    return None


OTHER_WORDS = r"(?i)\b(?:no|not|w/o|without|eager|compil|overlap|flash|fp\d|bf|zero|re-?comp)"
"""Behind a fabric: of the row itself, not of its network."""


def share_fabrics(rows: Iterable[Mapping[str, str | None]]) -> list[dict[str, str | None]]:
    """Rows that state no network get the one that all other rows of their source and GPU state."""
    copies = [dict(row) for row in rows]
    stated: dict[tuple[str | None, str | None], set[str]] = {}
    for row in copies:
        if found := _stated(row.get("notes") or ""):
            stated.setdefault((row.get("source"), row.get("gpu")), set()).add(found)
    for row in copies:
        fabrics = stated.get((row.get("source"), row.get("gpu")), set())
        if len(fabrics) == 1 and not _stated(row.get("notes") or ""):
            row["notes"] = f"{row.get('notes') or ''}; {next(iter(fabrics))}"
    return copies
