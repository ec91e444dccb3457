"""Does the command line mean what a Hydra user expects, and does nothing slip through?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from launcher.config.compose import compose_run, config_text, split_sweep
from launcher.errors import ConfigError, Finding
from tests.config.trees import write_tree

ROOT = Path(__file__).resolve().parents[2]
STEPS = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())["train"]["steps"]


def findings(*overrides: str, dirs=()) -> list[Finding]:
    try:
        return list(compose_run(overrides, dirs).findings)
    except ConfigError as error:
        return list(error.findings)


def rules(*overrides: str, dirs=()) -> list[tuple[str, str]]:
    return [(finding.field, finding.rule) for finding in findings(*overrides, dirs=dirs)]


# Options that the user names and the recipe


def test_no_arguments_compose_the_quickstart():
    composed = compose_run([])
    assert composed.choices["recipe"] == composed.values["recipe"] == "quickstart"
    assert composed.notes == composed.findings == ()


@pytest.mark.parametrize(
    "override", ["model=tiny", "hardware=h100x8", "recipe=gpt2_124m_h100x8", "recipe=null"]
)
def test_a_named_model_hardware_or_recipe_replaces_the_quickstart(override):
    assert compose_run([override]).choices["recipe"] != "quickstart"


@pytest.mark.parametrize("override", ["parallelism=ddp", "optimizer=sgd", "train.steps=3"])
def test_other_overrides_change_the_quickstart(override):
    assert compose_run([override]).choices["recipe"] == "quickstart"


def test_a_named_parallelism_means_itself_and_not_the_recipes_degrees():
    composed = compose_run(["parallelism=ddp"])
    degrees = composed.values["parallelism"]
    assert (degrees["tp"], degrees["pp"], degrees["dp"]) == (1, 1, None)
    assert degrees["zero_stage"] == 0
    assert composed.values["train"]["steps"] == STEPS, "the recipe still holds for other groups"
    assert composed.notes == (
        "parallelism=ddp: as named; recipe=quickstart says nothing on parallelism then",
    )


def test_dotted_overrides_still_apply_to_a_named_option():
    degrees = compose_run(["parallelism=ddp", "parallelism.tp=2"]).values["parallelism"]
    assert (degrees["tp"], degrees["pp"], degrees["dp"]) == (2, 1, None)


def test_a_named_optimizer_keeps_its_own_learning_rate():
    optimizer = compose_run(["optimizer=sgd"]).values["optimizer"]
    assert (optimizer["name"], optimizer["learning_rate"]) == ("sgd", 0.1)
    assert (optimizer["schedule"], optimizer["warmup_steps"]) == ("constant", 0)


def test_named_hardware_keeps_its_own_devices_under_a_named_recipe():
    values = compose_run(["recipe=quickstart", "hardware=h100x8"]).values
    assert values["hardware"]["gpus_per_node"] == 8
    assert values["parallelism"]["tp"] == 2


def test_a_group_inside_an_option_is_named_without_naming_the_option():
    values = compose_run(["recipe=llama3_8b_h100x64", "hardware/gpu=b200_sxm"]).values
    assert values["hardware"]["gpu"]["name"].startswith("B200")
    assert values["hardware"]["num_nodes"] == 8


def test_several_named_groups_drop_the_recipe_in_each():
    composed = compose_run(["parallelism=single", "optimizer=sgd", "optimizer.learning_rate=0.5"])
    assert composed.values["parallelism"]["dp"] == 1
    assert composed.values["optimizer"]["learning_rate"] == 0.5
    assert len(composed.notes) == 2


def test_the_printed_config_is_the_one_that_runs():
    composed = compose_run(["parallelism=ddp"])
    document = yaml.safe_load(config_text(composed, "job", None, resolve=False))
    assert document == composed.values


# Keys


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_unknown_keys_reach_the_schema_whatever_their_prefix(prefix):
    composed = compose_run([f"{prefix}parallelism.tpp=2", f"{prefix}nonsense=1"])
    assert composed.findings == ()
    assert composed.values["parallelism"]["tpp"] == 2
    assert composed.values["nonsense"] == 1


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_known_keys_are_set_whatever_their_prefix(prefix):
    assert compose_run([f"{prefix}train.steps=7"]).values["train"]["steps"] == 7


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_options_are_chosen_whatever_their_prefix(prefix):
    assert compose_run([f"{prefix}model=tiny"]).choices["model"] == "tiny"


def test_a_deleted_key_is_gone():
    assert "seed" not in compose_run(["~train.seed"]).values["train"]


def test_a_deleted_key_with_its_value_is_gone_and_with_another_value_is_a_mistake():
    assert "log_every" not in compose_run(["~train.log_every=1"]).values["train"]
    (finding,) = findings("~train.log_every=3")
    assert str(finding) == "~train.log_every [unknown-key]: it is 1, not 3."


def test_deleting_what_is_not_there_is_a_mistake():
    assert [str(finding) for finding in findings("~missing", "~train.sed")] == [
        "~missing [unknown-key]: no such key.",
        "~train.sed [unknown-key]: no such key; did you mean 'seed'?",
    ]


def test_a_deleted_recipe_is_no_recipe():
    assert compose_run(["~recipe"]).choices["recipe"] is None


def test_keys_of_hydras_own_job_are_refused():
    assert rules("hydra.run.dir=x", "hydra/job_logging=none") == [
        ("hydra.run.dir", "unknown-key"),
        ("hydra/job_logging", "unknown-key"),
    ]


# Options


def test_unknown_options_of_several_groups_are_all_named_with_what_was_meant():
    given = findings("model=tinyy", "optimizer=adam", "data=zzz", "hardware=h100x65")
    assert [(f.field, f.rule, f.fix) for f in given] == [
        ("model", "unknown-option", "model=tiny"),
        ("optimizer", "unknown-option", "optimizer=adamw"),
        ("data", "unknown-option", ""),
        ("hardware", "unknown-option", "hardware=h100x64"),
    ]
    assert given[2].legal == ["megatron", "mixture", "stdlib_text", "store", "tokens"]


def test_the_option_that_was_meant_is_composed_so_that_the_rest_can_be_judged():
    composed = compose_run(["model=llama3_8bb", "hardware=zzz"])
    assert composed.values["model"]["num_layers"] == 32
    assert composed.unknown_groups == {"hardware"}


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("model=[tiny,auto]", "one-option"),
        ("checkpoint=null", "unknown-option"),
        ("model=", "unknown-option"),
        ("model=7", "unknown-option"),
        ("model=true", "unknown-option"),
        ("hardware/gpuu=h100_sxm", "unknown-group"),
        ("hardware/gpu=h100_sxm", "group-not-in-use"),
        ("model@elsewhere=tiny", "unknown-package"),
        ("train.steps@elsewhere=3", "unknown-package"),
        ("model=tiny,auto", "sweep-without-m"),
        ("train.steps=range(1,3)", "sweep-without-m"),
        ("train.steps=choice(1,2)", "sweep-without-m"),
        ("a.b.c", "override-syntax"),
        ("", "override-syntax"),
        ("=", "override-syntax"),
        ("=3", "override-syntax"),
        ("~", "override-syntax"),
        ("a=b=c", "override-syntax"),
        ("train.steps=int(x)", "override-syntax"),
        ("launch.job_name=$(id)", "override-syntax"),
        ("name=[1", "override-syntax"),
        ("name='x", "override-syntax"),
        ("train.steps=???", "missing-key"),
        ("name=${nope}", "interpolation"),
        ("name=${name}", "interpolation"),
        ("name=${foo:bar}", "interpolation"),
        ("hydra.searchpath=[file:///no/such/tree]", "no-such-directory"),
    ],
)
def test_a_mistaken_override_is_one_finding_and_hides_no_other(override, rule):
    given = findings(override, "optimizer=sdg")
    assert sorted(finding.rule for finding in given) == sorted([rule, "unknown-option"])
    assert ("optimizer", "sgd") in [(f.field, f.fix.partition("=")[2]) for f in given]


def test_a_syntax_error_shows_how_to_quote():
    (finding,) = findings("name=a=b'c")
    assert finding.fix == """'name="a=b'"'"'c"', which takes the value as text"""
    assert compose_run(['name="a=b\'c"']).values["name"] == "a=b'c"


# Sweeps


def test_a_sweep_is_the_cartesian_product_in_order():
    jobs = split_sweep(["model=tiny", "train.seed=1,2", "parallelism=tp,ddp", "train.steps=9"])
    assert jobs == [
        ["model=tiny", "train.seed=1", "parallelism=tp", "train.steps=9"],
        ["model=tiny", "train.seed=1", "parallelism=ddp", "train.steps=9"],
        ["model=tiny", "train.seed=2", "parallelism=tp", "train.steps=9"],
        ["model=tiny", "train.seed=2", "parallelism=ddp", "train.steps=9"],
    ]


def test_ranges_sweep_too():
    assert split_sweep(["train.seed=range(3)"]) == [[f"train.seed={seed}"] for seed in range(3)]


def test_m_without_a_sweep_is_one_job():
    assert split_sweep(["train.seed=1"]) == [["train.seed=1"]]
    assert split_sweep([]) == [[]]


def test_a_sweep_over_a_list_keeps_the_list():
    jobs = split_sweep(["parallelism.order=[tp,cp,dp,pp],[dp,cp,tp,pp]"])
    orders = [compose_run(job).values["parallelism"]["order"] for job in jobs]
    assert orders == [["tp", "cp", "dp", "pp"], ["dp", "cp", "tp", "pp"]]


def test_syntax_errors_of_a_sweep_are_all_reported():
    with pytest.raises(ConfigError) as refusal:
        split_sweep(["a.b", "train.seed=1,2", "c="[:1]])
    assert [finding.rule for finding in refusal.value.findings] == ["override-syntax"] * 2


# Values


def test_interpolations_are_resolved():
    values = compose_run(["name=run_${model.name}_${train.seed}"]).values
    assert values["name"] == "run_tiny_1234"


def test_interpolations_see_the_option_that_was_named():
    values = compose_run(["optimizer=sgd", "name=lr_${optimizer.learning_rate}"]).values
    assert values["name"] == "lr_0.1"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}",
        "a ${oc.env:SECRET} b",
        "${ oc.env:SECRET}",
        "${oc.env:NOT_SET,fallback}",
        "${oc.decode:${oc.env:SECRET}}",
        "${oc.${prefix}:SECRET}",
    ],
)
def test_the_environment_is_not_read_however_it_is_asked_for(value, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "hunter2")
    write_tree(tmp_path, recipe__mine=f'# @package _global_\nprefix: env\nname: "{value}"\n')
    composed = compose_run(["recipe=mine"], [tmp_path])
    assert [(f.field, f.rule) for f in composed.findings] == [("name", "no-environment")]
    assert "hunter2" not in str(composed.findings) + str(composed.values)
    assert compose_run(["name=x"]).values["name"] == "x"


def test_environment_resolver_is_back_after_composing(monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setenv("SECRET", "hunter2")
    compose_run([])
    assert OmegaConf.create({"a": "${oc.env:SECRET}"}).a == "hunter2"


def test_every_value_that_cannot_be_resolved_is_named():
    assert rules("name=${nope}", "train.steps=???", "+x.y=${oc.env:HOME}") == [
        ("train.steps", "missing-key"),
        ("name", "interpolation"),
        ("x.y", "no-environment"),
    ]


# Other conf trees


def test_options_of_an_own_conf_tree_are_found_and_suggested(tmp_path):
    write_tree(tmp_path, model__mine="defaults: [tiny]\nname: mine\n")
    assert compose_run(["model=mine"], [tmp_path]).values["model"]["hidden_size"] == 128
    (finding,) = findings("model=mone", dirs=[tmp_path])
    assert finding.fix == "model=mine"


def test_a_conf_tree_may_have_any_path(tmp_path):
    tree = write_tree(tmp_path / 'a "b", [c] $d \\e', model__mine="name: mine\n")
    assert compose_run(["model=mine"], [tree]).values["model"] == {"name": "mine"}


def test_an_own_recipe_is_taken_whole(tmp_path):
    write_tree(
        tmp_path,
        recipe__mine="""
            # @package _global_
            defaults:
              - override /model: gpt2_124m
            recipe: mine
            train: {steps: 5}
        """,
    )
    composed = compose_run(["recipe=mine"], [tmp_path])
    assert composed.values["train"]["steps"] == 5
    assert composed.choices["model"] == "gpt2_124m"


def test_hydras_search_path_joins_the_config_dir(tmp_path):
    first = write_tree(tmp_path / "first", model__one="name: one\n")
    second = write_tree(tmp_path / "second", data__two="name: two\n")
    values = compose_run(
        ["model=one", "data=two", f"hydra.searchpath=[file://{second}]"], [first]
    ).values
    assert (values["model"]["name"], values["data"]["name"]) == ("one", "two")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1\n", "line 2 is not YAML"),
        ("a: 1\na: 2\n", "line 2 is not YAML: found duplicate key a"),
        ("defaults:\n  - nosuch\n", "Could not load 'model/nosuch'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, reason):
    write_tree(tmp_path, model__broken=text)
    (finding,) = findings("model=broken", dirs=[tmp_path])
    assert finding.rule == "composition"
    assert reason in finding.reason
    assert "broken" in finding.field + finding.reason


def test_a_file_that_is_not_text_is_a_finding(tmp_path):
    write_tree(tmp_path, model__bytes="")
    (tmp_path / "model" / "bytes.yaml").write_bytes(b"\xff\xfe")
    assert [rule for _, rule in rules("model=bytes", dirs=[tmp_path])] == ["composition"]


# --cfg


@pytest.mark.parametrize("resolve", [True, False])
def test_the_printed_job_loads_as_yaml(resolve):
    composed = compose_run(["name=a_${model.name}", 'launch.job_name="x: [y"'])
    document = yaml.safe_load(config_text(composed, "job", None, resolve))
    assert document["launch"]["job_name"] == "x: [y"
    assert document["name"] == ("a_tiny" if resolve else "a_${model.name}")
    assert "hydra" not in document


def test_a_package_is_a_part_and_an_unknown_one_a_mistake():
    composed = compose_run([])
    assert yaml.safe_load(config_text(composed, "job", "train", resolve=False))["steps"] == STEPS
    with pytest.raises(ConfigError, match=r"--package trian \[unknown-key\]"):
        config_text(composed, "job", "trian", resolve=False)


def test_nothing_of_hydra_is_left_behind():
    compose_run(["model=tiny"])
    assert not GlobalHydra.instance().is_initialized()
