"""Is every wrong value found, named and explained, however it got into the configuration?"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from launcher.config.load import load_run
from launcher.config.local_hardware import LocalMachine
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding
from tests.config.trees import write_tree
from tests.factory import make_run

MACHINE = LocalMachine(gpus=(), cores=4, clock_hz=2e9, flops_per_cycle=32, memory_bytes=16 * 2**30)
DOCUMENT = make_run().model_dump(mode="json")


def refused(*overrides: str, dirs: tuple[Path, ...] = ()) -> list[Finding]:
    with pytest.raises(ConfigError) as refusal:
        load_run(overrides, dirs, lambda: MACHINE)
    return list(refusal.value.findings)


def changed(field: str, value: object) -> list[Finding]:
    """Findings of a good document with one value changed."""
    document = yaml.safe_load(yaml.safe_dump(DOCUMENT))
    *parents, key = field.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    node[key] = value
    return validate_run(document)[1]


def test_a_good_document_is_a_run_without_findings():
    run, findings = validate_run(DOCUMENT)
    assert run == make_run()
    assert findings == []


# Unknown keys


def test_the_text_of_the_design_page():
    (finding,) = changed("parallelism.tpp", 2)
    assert str(finding) == "parallelism.tpp [unknown-key]: no such key; did you mean 'tp'?"


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("parallelism.micro_batch_size", "train.micro_batch_size"),
        ("tp", "parallelism.tp"),
        ("trian", "train"),
        ("train.step", "steps"),
        ("hardware.gpu.memory_byte", "memory_bytes"),
        ("hardware.gpu.peak_flops.fp23", "fp32"),
    ],
)
def test_an_unknown_key_is_led_home(field, meant):
    (finding,) = changed(field, 1)
    assert (finding.field, finding.rule) == (field, "unknown-key")
    assert finding.reason == f"no such key; did you mean '{meant}'?"


def test_an_unknown_key_like_no_other_lists_what_there_is():
    (finding,) = changed("precision.zzz", 1)
    assert finding.legal == ["compute", "name"]


def test_what_yaml_ate_in_a_list_is_named_by_its_place(tmp_path):
    write_tree(tmp_path, launch__mine="name: slurm\nhosts: [n1, 007]\nenv: {A: off}\n")
    in_env, in_hosts = refused("launch=mine", dirs=(tmp_path,))
    assert (in_hosts.field, in_env.field) == ("launch.hosts.1", "launch.env.A")
    assert in_hosts.fix == f'"007" with its quotes in the list in {tmp_path}/launch/mine.yaml'
    assert in_env.fix == f'A: "off" in {tmp_path}/launch/mine.yaml'


def test_slurm_s_own_word_for_a_key_leads_to_the_key(tmp_path):
    text = "name: slurm\ntime: 12:00:00\naccount: 007\npartition: no\n"
    write_tree(tmp_path, launch__mine=text)
    found = {finding.field: finding for finding in refused("launch=mine", dirs=(tmp_path,))}
    assert set(found) == {"launch.time", "launch.account", "launch.partition"}
    assert found["launch.time"].reason == "no such key; did you mean 'time_limit'?"
    assert found["launch.time"].fix == 'time_limit: "12:00:00", with its quotes'
    write_tree(tmp_path, launch__mine="name: slurm\ngpus-per-node: 8\n")
    (finding,) = refused("launch=mine", dirs=(tmp_path,))
    assert finding.reason == "no such key; did you mean 'hardware.gpus_per_node'?"


def test_a_line_of_a_list_is_one_line(tmp_path):
    write_tree(tmp_path, launch__mine='name: slurm\nsetup: ["a\\nb"]\n')
    (finding,) = refused("launch=mine", dirs=(tmp_path,))
    assert (finding.field, finding.rule) == ("launch.setup.0", "text-on-one-line")


@pytest.mark.parametrize(
    "override",
    ["nonsense=1", "+nonsense=1", "++nonsense=1", "+nonsense.deep.er=1", "+train.nonsense=1",
     "++train.nonsense=1", "train.nonsense={a: 1}", "train={nonsense: 1}", "+hardware.gpu.zzz=1"],
)  # fmt: skip
def test_unknown_keys_are_refused_however_they_are_smuggled_in(override):
    findings = refused(override)
    assert [finding.rule for finding in findings] == ["unknown-key"]
    assert {"nonsense", "zzz"} & set(findings[0].field.split("."))


def test_unknown_keys_of_an_own_tree_and_of_an_own_recipe_are_refused(tmp_path):
    write_tree(
        tmp_path,
        launch__mine="name: local\nqueue: fast\n",
        recipe__own="# @package _global_\ntrain: {stepz: 3}\nwhat: {ever: 1}\n",
    )
    findings = refused("launch=mine", "recipe=own", "model=tiny", dirs=(tmp_path,))
    assert [(f.field, f.rule) for f in findings] == [
        ("train.stepz", "unknown-key"),
        ("launch.queue", "unknown-key"),
        ("what", "unknown-key"),
    ]


# Wrong types and values


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("train.steps", "x", "[wrong-type]: a whole number is wanted, and this is text."),
        ("train.steps", None, "[wrong-type]: a whole number is wanted, and this is null."),
        ("train.steps", True, "[wrong-type]: a whole number is wanted, and this is a truth value."),
        ("train.steps", 1e3,
         "[wrong-type]: a whole number is wanted, and this is a number with a fraction. Try "
         "train.steps=1000."),
        ("train.steps", 1.5,
         "[wrong-type]: a whole number is wanted, and this is a number with a fraction."),
        ("train.steps", [1], "[wrong-type]: a whole number is wanted, and this is a list."),
        ("train.compile", 1, "[wrong-type]: true or false is wanted, and this is a number."),
        ("train.compile", "no",
         "[wrong-type]: true or false is wanted, and this is text. Try train.compile=false."),
        ("parallelism.tp", "two",
         "[wrong-type]: a whole number or null is wanted, and this is text."),
        ("model.hidden_size", 10**9,
         "[out-of-range]: it must be at most 16777216. Try model.hidden_size=16777216."),
        ("hardware.speeds", "fast",
         "[wrong-type]: a list of numbers or null is wanted, and this is text."),
        ("parallelism.layers_per_stage", 8,
         "[wrong-type]: a list of whole numbers or null is wanted, and this is a number."),
        ("optimizer.learning_rate", "fast", "[wrong-type]: a number is wanted, and this is text."),
        ("optimizer.learning_rate", "1e-3",
         "[wrong-type]: a number is wanted, and this is text. Try "
         "optimizer.learning_rate=0.001."),
        ("train.steps", "100",
         "[wrong-type]: a whole number is wanted, and this is text. Try train.steps=100 "
         "without quotes."),
        ("launch.job_name", ["a"], "[wrong-type]: text or null is wanted, and this is a list."),
        ("parallelism.order", "tp", "[wrong-type]: a list is wanted, and this is text."),
        ("train", 3, "[wrong-type]: a group of keys is wanted, and this is a number."),
        ("hardware.gpu", "h100",
         "[wrong-type]: a group of keys or null is wanted, and this is text."),
        ("train.steps", 0, "[out-of-range]: it must be at least 1. Try train.steps=1."),
        ("parallelism.dp", 2**31,
         "[out-of-range]: it must be at most 8388608. Try parallelism.dp=8388608."),
        ("train.seed", -1, "[out-of-range]: it must be at least 0. Try train.seed=0."),
        ("parallelism.zero_stage", 4,
         "[out-of-range]: it must be at most 3. Try parallelism.zero_stage=3."),
        ("optimizer.learning_rate", 0, "[out-of-range]: it must be more than 0."),
        ("optimizer.beta1", 1.0,
         "[out-of-range]: it must be less than 1. Try optimizer.beta1=0.9."),
        ("optimizer.learning_rate", float("nan"), "[out-of-range]: it must be a finite number."),
        ("optimizer.learning_rate", float("inf"), "[out-of-range]: it must be a finite number."),
        ("model.norm", "rms",
         "[unknown-value]: no such choice; did you mean 'rmsnorm'? Legal here: layernorm, "
         "rmsnorm. Try model.norm=rmsnorm."),
        ("model.norm", None,
         "[unknown-value]: no such choice. Legal here: layernorm, rmsnorm. Try "
         "model.norm=rmsnorm."),
        ("parallelism.recompute", "all",
         "[unknown-value]: no such choice. Legal here: none, selective, full, null. Try "
         "parallelism.recompute=none."),
        ("parallelism.order", ["tp", "xp"],
         "[unknown-value]: no such choice. Legal here: tp, cp, ep, dp, pp."),
        ("parallelism.schedule", "mine.txt",
         "[unknown-value]: no such choice. Legal here: naive, gpipe, 1f1b, interleaved_1f1b, "
         "zb_h1, zb_h2, zb_1p, zb_2p, zb_v, dualpipev, the path of a .csv or .json file. Try "
         "parallelism.schedule=1f1b."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_explained(field, value, text):
    (finding,) = changed(field, value)
    head, _, tail = str(finding).partition(" [")
    assert head.startswith(f"{field}=")
    assert "[" + tail == text


def test_a_number_of_a_list_is_named_by_its_place():
    (finding,) = changed("parallelism.layers_per_stage", [3, 0])
    place = "parallelism.layers_per_stage.1=0"
    advice = "each number must be at least 1. Try 1 in its place."
    assert str(finding) == f"{place} [out-of-range]: {advice}"


@pytest.mark.parametrize("field", ["train.steps", "optimizer.name", "model", "launch.name"])
def test_a_missing_key_is_named(field):
    group, _, key = field.partition(".")
    document = dict(DOCUMENT)
    if key:
        document[group] = {k: v for k, v in document[group].items() if k != key}
    else:
        del document[group]
    (finding,) = validate_run(document)[1]
    assert (finding.field, finding.rule) == (field, "missing-key")


# Text that YAML eats


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("time_limit", "12:00:00", "43200"),
        ("time_limit", "1:30:00", "5400"),
        ("time_limit", "90:00", "5400"),
        ("time_limit", "90", "90"),
        ("account", "007", "7"),
        ("account", "010", "8"),
        ("account", "0x1F", "31"),
        ("account", "1_000", "1000"),
        ("account", "3.10", "3.1"),
        ("partition", "no", "false"),
        ("partition", "On", "true"),
        ("partition", "yes", "true"),
        ("job_name", "1e3", "1000.0"),
        ("job_name", ".inf", "inf"),
        ("job_name", "true", "true"),
    ],
)
def test_text_that_yaml_ate_is_quoted_as_it_was_written(tmp_path, key, written, value):
    write_tree(tmp_path, launch__mine=f"name: slurm\n{key}: {written}\n")
    (finding,) = refused("launch=mine", dirs=(tmp_path,))
    assert (finding.field, finding.rule) == (f"launch.{key}", "yaml-eaten")
    assert str(finding.value) == value
    path = tmp_path / "launch" / "mine.yaml"
    assert finding.fix == f'{key}: "{written}" in {path}'
    assert yaml.safe_load(finding.fix.partition(" in ")[0]) == {key: written}


def test_eaten_text_of_a_recipe_is_found_there(tmp_path):
    text = "# @package _global_\ndefaults: [{override /model: tiny}]\nlaunch: {account: 007}\n"
    write_tree(tmp_path, recipe__own=text)
    (finding,) = refused("recipe=own", dirs=(tmp_path,))
    assert finding.fix == f'account: "007" in {tmp_path / "recipe" / "own.yaml"}'


def test_eaten_text_from_elsewhere_is_guessed(tmp_path):
    write_tree(tmp_path, launch__base="time_limit: 12:00:00\n",
               launch__mine="defaults: [base, _self_]\nname: slurm\n")  # fmt: skip
    (finding,) = refused("launch=mine", dirs=(tmp_path,))
    assert finding.reason.endswith("as it does with 12:00:00 unquoted")
    assert "12:00:00" in finding.fix


@pytest.mark.parametrize("written", ["123", "1e3", "true", "1_000", "3.10"])
def test_eaten_text_of_the_command_line_has_a_fix_that_can_be_typed(written):
    (finding,) = refused(f"launch.account={written}")
    assert finding.rule == "yaml-eaten"
    typed = shlex.split(finding.fix.partition(",")[0])
    assert load_run(typed, machine=lambda: MACHINE).run.launch.account == written


@pytest.mark.parametrize("written", ["12:00:00", "007", "010", "no", "null_", "a b", "0x10", '"é"'])
def test_what_the_command_line_leaves_alone_passes(written):
    run = load_run([f"launch.job_name={written}"], machine=lambda: MACHINE).run
    assert run.launch.job_name == written.strip('"')


def test_null_leaves_a_text_open():
    assert load_run(["launch.job_name=null"], machine=lambda: MACHINE).run.launch.job_name is None


# Text that would break a script


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\x00b", "a\x1b[31mb", "a\u2028b", "a\udcffb"])
@pytest.mark.parametrize("field", ["launch.job_name", "name", "launch.partition", "model.name"])
def test_text_with_control_characters_is_refused(field, bad):
    findings = changed(field, bad)
    assert [(f.field, f.rule) for f in findings] == [(field, "text-on-one-line")]
    assert str(findings[0]).isprintable()
    (typed,) = shlex.split(findings[0].fix)
    assert load_run([typed, "recipe=null"], machine=lambda: MACHINE)


# All at once


MANY = [
    "parallelism.tp=3", "parallelism.tpp=1", "+oops=1", "model=tinyy", "optimizer=adam",
    "train.steps=x", "train.seed=-1", "precision.compute=fp16", "launch.account=12",
    "a.b", "~nothing", "train.log_every=1,2", "name=${nope}", "launch.time_limit=soon",
    "parallelism.vpp=2",
]  # fmt: skip
WANTED = [
    ("a.b", "override-syntax"),
    ("model", "unknown-option"),
    ("optimizer", "unknown-option"),
    ("train.log_every=1,2", "sweep-without-m"),
    ("~nothing", "unknown-key"),
    ("name", "interpolation"),
    ("parallelism.tpp", "unknown-key"),
    ("train.steps", "wrong-type"),
    ("train.seed", "out-of-range"),
    ("precision.compute", "unknown-value"),
    ("launch.account", "yaml-eaten"),
    ("oops", "unknown-key"),
    ("parallelism.tp", "tp-divides-heads"),
    ("parallelism.tp", "tp-fits-kv-heads"),
    ("parallelism.vpp", "vpp-suits-schedule"),
    ("launch.time_limit", "time-limit-readable"),
]


def test_many_mistakes_are_all_listed_in_a_stable_order():
    first = refused(*MANY)
    assert [(finding.field, finding.rule) for finding in first] == WANTED
    assert refused(*MANY) == first


def test_the_order_of_the_command_line_does_not_lose_a_finding():
    key = lambda finding: (finding.field, finding.rule)  # noqa: E731
    assert sorted(refused(*reversed(MANY)), key=key) == sorted(refused(*MANY), key=key)


def test_a_refused_value_is_not_judged_by_the_rules_that_read_it():
    findings = refused("model=tiny", "model.num_heads=twelve", "parallelism.tp=5")
    assert [(f.field, f.rule) for f in findings] == [
        ("model.num_heads", "wrong-type"),
        ("parallelism.tp", "tp-fits-kv-heads"),
        ("parallelism.tp", "tp-divides-ffn"),
    ]


def test_an_unknown_model_is_not_judged_by_rules_on_models():
    findings = refused("model=zzz", "parallelism.tp=7", "parallelism.vpp=2")
    assert [finding.rule for finding in findings] == ["unknown-option", "vpp-suits-schedule"]
