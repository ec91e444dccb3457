"""Do overrides change a frozen run as they change a composed one, and nothing else?"""

from __future__ import annotations

import pytest

from launcher.config.amend import amend_values
from launcher.config.load import load_run
from launcher.config.local_hardware import LocalMachine
from launcher.config.resume import find_changes
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.plan.build import build_plan
from launcher.plan.resume import plan_resumed
from tests.config.trees import write_tree
from tests.factory import make_run

MACHINE = LocalMachine(gpus=(), cores=4, clock_hz=2e9, flops_per_cycle=16, memory_bytes=16 * 2**30)


@pytest.fixture(scope="module")
def frozen() -> Run:
    """The quickstart on CPU processes: tp=2 pp=2 dp=1, global batch 16 = 4 x 4."""
    return build_plan(load_run(["hardware.device=cpu"], machine=lambda: MACHINE).run).run


@pytest.fixture(scope="module")
def cluster() -> Run:
    words = ["model=llama3_8b", "hardware=h100x64", "parallelism=3d"]
    return build_plan(load_run(words).run).run


def changed(frozen: Run, *overrides: str) -> dict[str, object]:
    """Changed keys and their new values, facts of the hardware left out."""
    new = plan_resumed(frozen, overrides).run
    skipped = ("hardware.gpu.", "hardware.node.", "hardware.network.")
    return {c.key: c.new for c in find_changes(frozen, new) if not c.key.startswith(skipped)}


def test_without_overrides_nothing_changes(frozen):
    assert plan_resumed(frozen, []).run == frozen


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["train.log_every=5"], {"train.log_every": 5}),
        (["++train.log_every=5"], {"train.log_every": 5}),
        (["train={log_every:5}"], {"train.log_every": 5}),
        (["name=${recipe}"], {"name": "quickstart"}),
        (["~train.seed"], {}),
        (["~optimizer.clip_grad_norm", "train.seed=3"], {"train.seed": 3}),
        (["checkpoint.keep=3", "checkpoint.every_steps=5"], {}),
    ],
)
def test_a_value_is_overridden(frozen, overrides, wanted):
    amended = amend_values(frozen.model_dump(mode="json"), overrides)
    assert amended.findings == ()
    if wanted:
        assert changed(frozen, *overrides) == wanted


def test_another_layout_keeps_the_global_batch(frozen):
    """dp takes what is left; microbatches follow."""
    assert changed(frozen, "parallelism.tp=4", "parallelism.pp=1") == {
        "parallelism.tp": 4, "parallelism.pp": 1,
    }  # fmt: skip
    assert changed(frozen, "parallelism.dp=2") == {
        "parallelism.dp": 2, "hardware.gpus_per_node": 8, "train.num_microbatches": 2,
    }  # fmt: skip


def test_a_microbatch_that_does_not_divide_any_more_is_solved_again(frozen):
    new = plan_resumed(frozen, ["parallelism.tp=1", "parallelism.pp=1", "parallelism.dp=8"]).run
    train = new.train
    assert (train.global_batch_size, train.micro_batch_size, train.num_microbatches) == (16, 1, 2)


def test_a_microbatch_size_that_was_named_stays(frozen):
    with pytest.raises(ConfigError, match=r"batch-triangle"):
        plan_resumed(frozen, ["parallelism.dp=8", "train.micro_batch_size=4"])


def test_a_preset_replaces_the_whole_group_and_what_it_leaves_open_is_solved(frozen):
    new = plan_resumed(frozen, ["parallelism=zero3", "parallelism.dp=4"]).run
    assert (new.parallelism.name, new.parallelism.zero_stage) == ("zero3", 3)
    assert (new.parallelism.tp, new.parallelism.pp, new.parallelism.dp) == (1, 1, 4)
    assert new.train.global_batch_size == frozen.train.global_batch_size


def test_other_hardware_keeps_model_and_batch(cluster):
    new = plan_resumed(cluster, ["hardware=h100x512", "parallelism=3d"]).run
    assert new.model == cluster.model
    assert new.hardware.num_nodes == 64
    assert new.train.global_batch_size == cluster.train.global_batch_size
    fewer = plan_resumed(cluster, ["hardware=h100x8"]).run
    assert fewer.parallelism.tp == cluster.parallelism.tp
    assert fewer.parallelism.dp * 8 == cluster.parallelism.dp


def test_a_group_of_an_own_tree_is_known(tmp_path, frozen):
    write_tree(tmp_path, train__long="defaults: [default]\nsteps: 5000\n")
    new = plan_resumed(frozen, ["train=long"], [tmp_path]).run
    assert new.train.steps == 5000
    assert new.train.global_batch_size == frozen.train.global_batch_size
    assert new.train.sequence_length == frozen.train.sequence_length


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["train.stesp=1"],
            r"train.stesp \[unknown-key\]: no such key; did you mean 'steps'",
        ),
        (["parallelism=4d"], r"parallelism=4d \[unknown-option\]"),
        (["recipe=quickstart"], r"recipe=quickstart \[run-on-resume\]"),
        (["model=auto"], r"model=auto \[run-on-resume\]"),
        (["train.seed=1,2"], r"\[sweep-without-m\]"),
        (["train.seed=x"], r"train.seed=x \[wrong-type\]"),
        (["train.steps.a=1"], r"train.steps"),
        (["name=${oc.env:HOME}"], r"\[no-environment\]"),
        (["=1"], r"\[override-syntax\]"),
        (["~train.nothing"], r"~train.nothing \[unknown-key\]"),
        (["train=null"], r"train"),
        (["parallelism.tp=3"], r"parallelism.tp=3 \[tp-divides-heads\]"),
        (["hardware/gpu=h100_sxm"], r"\[group-not-in-use\]"),
    ],
)
def test_a_mistake_is_a_finding(frozen, overrides, text):
    with pytest.raises(ConfigError, match=text):
        plan_resumed(frozen, overrides)


def test_mistakes_are_reported_at_once(frozen):
    with pytest.raises(ConfigError) as caught:
        plan_resumed(
            frozen, ["train.stesp=1", "parallelism=4d", "parallelism.tp=3", "train.seed=x"]
        )
    assert {finding.rule for finding in caught.value.findings} >= {
        "unknown-key", "unknown-option", "wrong-type",
    }  # fmt: skip


def test_a_forbidden_change_is_reported_beside_other_mistakes(frozen):
    words = ["model.vocab_size=300", "optimizer=sgd", "train.seed=x", "parallelism.tpp=1"]
    with pytest.raises(ConfigError) as caught:
        plan_resumed(frozen, words)
    found = [(finding.field, finding.rule) for finding in caught.value.findings]
    assert sorted(found) == [
        ("model.vocab_size", "forbidden-on-resume"), ("optimizer.name", "forbidden-on-resume"),
        ("parallelism.tpp", "unknown-key"), ("train.seed", "wrong-type"),
    ]  # fmt: skip


def test_another_model_is_refused_key_by_key(frozen):
    with pytest.raises(ConfigError) as caught:
        plan_resumed(frozen, ["model=gpt2_124m"])
    fields = {finding.field for finding in caught.value.findings}
    assert {"model.vocab_size", "model.hidden_size", "model.position"} < fields
    assert "model.name" not in fields


def test_text_that_looks_like_an_interpolation_stays_text():
    run = make_run(name="a${b}")
    amended = amend_values(run.model_dump(mode="json"), ["train.seed=1"])
    assert amended.values["name"] == "a${b}"
