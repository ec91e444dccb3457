"""A refused value names something to type, and typing it passes."""

import pytest

from launcher.config.load import load_run
from launcher.errors import ConfigError, Finding


def refusals(*overrides: str) -> tuple[Finding, ...]:
    with pytest.raises(ConfigError) as caught:
        load_run(overrides)
    return tuple(caught.value.findings)


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.steps=abc", "train.steps=60"),
        ("train.steps=1.5", "train.steps=60"),
        ("model.hidden_size=null", "model.hidden_size=128"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate=0.003"),
        ("parallelism.order=tp", "parallelism.order=[tp,cp,dp,pp]"),
        ("launch.job_name=[a]", "launch.job_name=null"),
        ("train.compile=3", "train.compile=false"),
    ],
)
def test_the_value_without_the_override_is_named_and_passes(override, fix):
    assert [finding.fix for finding in refusals("recipe=quickstart", override)] == [fix]
    load_run(("recipe=quickstart", fix))


def test_two_at_once_name_the_values_of_the_option_that_was_chosen():
    found = refusals(
        "model=llama3_8b", "hardware=h100x64", "model.hidden_size=wide", "train.steps=many"
    )
    assert "model.hidden_size=4096" in [finding.fix for finding in found]
    assert "" not in [finding.fix for finding in found if finding.rule == "wrong-type"]


def test_a_value_of_the_users_own_files_is_not_offered_where_it_is_refused_itself(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.yaml").write_text("defaults: [default]\nsteps: none_yet\n")
    with pytest.raises(ConfigError) as caught:
        load_run(("train=mine", "train.steps=abc"), (tmp_path,))
    assert [(f.field, f.fix) for f in caught.value.findings if f.field == "train.steps"] == [
        ("train.steps", "")
    ]
