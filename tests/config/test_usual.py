"""A refused value names something to type, and typing it passes."""

import pytest

from launcher.cli import main
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


def test_where_the_users_own_file_is_wrong_too_ours_are_asked(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.yaml").write_text("defaults: [default]\nsteps: none_yet\n")
    with pytest.raises(ConfigError) as caught:
        load_run(("train=mine", "train.steps=abc"), (tmp_path,))
    assert [(f.field, f.fix) for f in caught.value.findings if f.field == "train.steps"] == [
        ("train.steps", "train.steps=100")
    ]


BASE = ("model=llama3_8b", "hardware=h100x64")


def findings_of(*words, dirs=()):
    with pytest.raises(ConfigError) as raised:
        load_run([*BASE, *words], dirs)
    return raised.value.findings


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("hardware.gpu.peak_flops=0", "hardware.gpu.peak_flops.fp32=66900000000000.0"),
        ("hardware.network.bandwidth=-5", "hardware.network.bandwidth=50000000000.0"),
        ("hardware.node.bandwidth=nan", "hardware.node.bandwidth=450000000000.0"),
        ("hardware.gpu.peak_flops.bf16=inf", "hardware.gpu.peak_flops.bf16=989400000000000.0"),
        ("hardware.price_per_gpu_hour=-2", "hardware.price_per_gpu_hour=null"),
        ("hardware.num_nodes=0", "hardware.num_nodes=8"),
        ("hardware.num_nodes=two", "hardware.num_nodes=8"),
        ("hardware.gpu.memory_bytes=0", "hardware.gpu.memory_bytes=85520809984"),
        ("model.vocab_size=0", "model.vocab_size=128256"),
        ("model.head_dim=0", "model.head_dim=null"),
        ("train.steps=abc", "train.steps=100"),
        ("train.sequence_length=0", "train.sequence_length=null"),
        ("precision=fp8", "precision=bf16"),
        ("optimizer=adagrad", "optimizer=adamw"),
    ],
)
def test_what_stood_there_before_is_offered_and_passes(word, fix):
    (finding,) = findings_of(word)
    assert finding.fix == fix
    group = word.partition("=")[0]
    load_run([line for line in BASE if not line.startswith(f"{group}=")] + [fix])


def test_keys_that_are_missing_are_shown_what_a_model_of_ours_has():
    found = findings_of("model.experts.num_experts=8")
    assert [finding.fix for finding in found] == [
        "model.experts.experts_per_token=2", "model.experts.ffn_hidden_size=14336",
    ]  # fmt: skip
    load_run([*BASE, "model.experts.num_experts=8", *(finding.fix for finding in found)])


def test_a_file_of_ones_own_is_told_what_ours_have(tmp_path):
    node = tmp_path / "hardware" / "node"
    node.mkdir(parents=True)
    (node / "mine.yaml").write_text(
        "name: mine\nbandwidth: -1\nlatency_s: 1e-5\nhost_memory_bytes: 1000000000000\n"
    )
    (finding,) = findings_of("hardware/node=mine", dirs=(tmp_path,))
    assert finding.fix == "hardware.node.bandwidth=450000000000.0"


@pytest.mark.parametrize("experts", ["num_experts:8,experts_per_token:9,ffn_hidden_size:64",
                                     "num_experts:8,experts_per_token:2,ffn_hidden_size:64,"
                                     "num_dense_layers:33"])  # fmt: skip
def test_more_than_there_is_of_experts_and_layers_is_refused(experts):
    (finding,) = findings_of(f"model.experts={{{experts}}}")
    load_run([*BASE, f"model.experts={{{experts}}}", finding.fix])


@pytest.mark.parametrize("size", [1, 1000, 10**8])
def test_devices_without_room_for_anything_are_told_how_much_is_needed(size, capsys):
    words = ["plan", *BASE, "parallelism.recompute=full", "parallelism.engine=fsdp2",
             "parallelism.zero_stage=3", "train.micro_batch_size=1"]  # fmt: skip
    assert main([*words, f"hardware.gpu.memory_bytes={size}"]) == 3
    shown = capsys.readouterr().out
    fix = shown.partition("Try hardware.gpu.memory_bytes=")[2].partition(".")[0]
    assert main([*words, f"hardware.gpu.memory_bytes={fix}"]) == 0


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("hardware=h100x64", "hardware.gpu=h100"), "hardware/gpu=h100_sxm"),
        (("hardware=h100x64", "hardware.gpu=b200"), "hardware/gpu=b200_sxm"),
        (("hardware=local", "hardware.gpu=h100"), "+hardware/gpu=h100_sxm"),
        (("hardware=h100x64", "hardware.network=roce"), "hardware/network=roce_100"),
    ],
)
def test_an_option_that_is_written_as_a_value_is_told_its_group(words, fix):
    found = refusals("model=llama3_8b", *words)
    assert [finding.fix for finding in found if finding.rule == "wrong-type"] == [fix]
    load_run(("model=llama3_8b", words[0], fix))
