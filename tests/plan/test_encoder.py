"""Encoder-decoders: exact parameters, FLOPs by hand, memory and time that follow both sides."""

import json

import pytest

from launcher.cli import main
from launcher.config.assets import conf_dir
from launcher.config.facts import read_models
from launcher.plan.costs import count_parameters, encoder_parameters, sum_sizes
from launcher.plan.stages import count_stage_parameters
from launcher.plan.work import model_flops_per_token

MODELS = read_models(conf_dir())
T5 = MODELS["t5_11b"]


@pytest.mark.parametrize(("name", "size"), [("t5_11b", 11_307_321_344), ("t5_3b", 2_851_598_336)])
def test_parameters_are_those_of_the_released_weights(name, size):
    assert count_parameters(MODELS[name]) == size


def test_flops_follow_every_product():
    source, target, hidden, width, ffn = 512, 114, 1024, 128 * 128, 65536
    attention, mlp = 4 * hidden * width, 2 * hidden * ffn
    read = 24 * source * (2 * (attention + mlp) + 2 * source * 2 * width)
    own = 2 * (attention + mlp) + 2 * target / 2 * 2 * width
    cross = 2 * 2 * hidden * width + 2 * source * 2 * width
    written = 24 * target * (own + cross) + target * 2 * hidden * 32128
    keys = 24 * source * 2 * 2 * hidden * width
    total = 3 * (read + written + keys) / source
    assert model_flops_per_token(T5, source) == pytest.approx(total)


def test_the_first_stage_has_the_encoder():
    first = count_stage_parameters(T5, 6, True, False, 4)
    other = count_stage_parameters(T5, 6, False, False, 4)
    table = 32128 * 1024 // 4
    assert first - other == table + sum_sizes(encoder_parameters(T5), 4)


def plan(capsys, *overrides):
    assert main(["plan", "--json", "model=t5_11b", "hardware=a100x64", *overrides]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_of_one_is_made_with_stages_and_tensor_parallelism(capsys):
    whole = plan(capsys, "parallelism.tp=8", "parallelism.pp=1", "train.micro_batch_size=8")
    assert whole["parameters"] == 11_307_321_344
    assert 0.05 < whole["time"]["mfu"] < 0.6
    staged = plan(capsys, "parallelism.tp=4", "parallelism.pp=4", "train.micro_batch_size=8")
    memory = [stage["activations_bytes"] for stage in staged["memory"]["per_stage"]]
    assert memory[0] == max(memory)
    assert {entry["axis"] for entry in staged["communication"]} >= {"tp", "pp", "dp"}


def test_longer_targets_cost_more_and_a_longer_encoder_too(capsys):
    def step(*overrides):
        found = plan(capsys, "parallelism.tp=8", "parallelism.pp=1", *overrides)
        return found["time"]["compute_s"], found["memory"]["peak_bytes"]

    base = step()
    longer, deeper = step("model.encoder.decoder_length=512"), step("model.encoder.num_layers=48")
    for more in (longer, deeper):
        assert more[0] > base[0]
        assert more[1] > base[1]


def test_workers_refuse_one_and_rules_refuse_a_cut_sequence(capsys):
    for way in (["launch=local"], ["launch=local", "--dry-run"], ["launch=slurm", "--dry-run"]):
        assert main(["model=t5_3b", "hardware=a100x8", *way]) == 2
        out, err = capsys.readouterr()
        assert (out, "model.encoder=t5_3b [planned-only]" in err) == ("", True)
    assert main(["plan", "model=t5_3b", "hardware=a100x8", "parallelism.cp=2"]) == 2
    assert "[encoder-whole-sequence]" in capsys.readouterr().err
