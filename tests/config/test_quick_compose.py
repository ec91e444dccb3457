"""Is the quick composition what Hydra says, and is everything unusual left to Hydra?"""

import json
from itertools import zip_longest

import pytest

from launcher.config.assets import conf_dir
from launcher.config.compose import compose_run, parse_overrides
from launcher.config.plain_yaml import NotPlain, read_plain
from launcher.config.quick_compose import compose_quickly, compose_values

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
OPTIONS = {
    group: sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) for group in GROUPS
}
# Option by option through all groups but recipes at once: every option is in some line.
WITHOUT_RECIPE = [
    [f"{group}={option or OPTIONS[group][0]}" for group, option in zip(GROUPS, chosen, strict=True)]
    for chosen in zip_longest(*OPTIONS.values())
]
WITHOUT_RECIPE = [[w for w in line if not w.startswith("recipe=")] for line in WITHOUT_RECIPE]
LINES = [
    *WITHOUT_RECIPE,
    *([f"recipe={name}"] for name in OPTIONS["recipe"]),
    [],
    ["parallelism=ddp", "parallelism.tp=2"],
    ["recipe=gpt3_175b_a100x1024", "model=llama3_8b", "parallelism=3d", "train.steps=7"],
    ["model=llama3_8b", "hardware=h100x64", "parallelism.order=[tp,dp,cp,pp]", "train.no.key=1"],
    ["model=llama3_8b", "hardware=h100x8", "hardware.network=null", "optimizer.learning_rate=3e-4"],
    ["hardware=h100x64", "hardware.gpu.memory_bytes=100", "parallelism.schedule=1f1b"],
]
VALUES = (
    "1 0 -1 6.0e-4 3.14 -2.5 1e-8 10e3 0.0 true false null 1f1b zb_h1 a/b/c data/x.bin a-b "
    "[1,2] [tp,dp] [] [1f1b,null] off no yes none 1e400"
)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_plain_command_line_is_composed_as_hydra_composes_it(line):
    quick, slow = compose_quickly(line), compose_run(line)
    assert json.dumps(quick.values) == json.dumps(slow.values), "in the same order, too"
    own = {group: name for group, name in slow.choices.items() if not group.startswith("hydra/")}
    assert quick.choices == own
    assert quick.notes == slow.notes
    assert quick.findings == slow.findings == ()


@pytest.mark.parametrize("text", VALUES.split())
def test_a_plain_value_is_read_as_hydra_reads_it(text):
    (parsed,), _ = parse_overrides([f"train.x={text}"])
    quick = compose_quickly([f"train.x={text}"]).values["train"]["x"]
    assert (type(quick), quick) == (type(parsed.value()), parsed.value())


UNUSUAL = (
    "+train.x=1 ~train.seed ++train.x=1 train.x=007 train.x=1_000 train.x='a' train.x=nan "
    "train.x=${train.steps} train.x=a,b train.x={a:1} train.x=12:00:00 train.x= model=nothing "
    "model=null recipe=null hardware/gpu=b200_sxm steps=1 hydra.searchpath=[x] train.x.0=1 "
    "model@other=tiny train=3 word"
)


@pytest.mark.parametrize("word", UNUSUAL.split())
def test_what_is_unusual_is_left_to_hydra(word):
    with pytest.raises(NotPlain):
        compose_quickly([word])


def test_other_trees_interpolations_and_broken_files_are_left_to_hydra(tmp_path):
    with pytest.raises(NotPlain):
        compose_quickly([], [tmp_path])
    for number, text in enumerate(("a: ${b}", "a: ???", "a: 1\na: 2", "- 1", "a: [", "1: 2")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        with pytest.raises(NotPlain):
            read_plain(path)
    assert compose_values(["~train.seed"]).values["train"].get("seed") is None


def test_floats_and_dates_are_read_as_omegaconf_reads_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e5\nb: 3e-4\nc: 2001-01-01\nd: 12:00:00\ne: no\nf: 007\ng: '7'\n")
    _, values = read_plain(path)
    assert values == {
        "a": 1e5, "b": 3e-4, "c": "2001-01-01", "d": 43200, "e": False, "f": 7, "g": "7",
    }  # fmt: skip
