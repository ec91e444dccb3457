"""Are the YAML facts complete, of the right type, and true to what was published?"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from launcher.config import schema
from launcher.config.rules import check_run
from launcher.plan.costs import count_parameters

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

# Sources: the parameter total on each model's Hugging Face card; for GPT-2 the sum over the
# released checkpoint's weights, without its attention masks. The papers round them: 124M, 7B.
PUBLISHED = {
    "deepseek_v2": 235_741_434_880,
    "deepseek_v2_lite": 15_706_484_224,
    "deepseek_v3": 671_026_404_352,  # the routers' 14,848 correction biases are no weights
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_620_634_112,
    "olmoe_1b_7b": 6_919_161_856 - 16 * 2 * 2048,  # less the norms of queries and keys
    "qwen3_30b_a3b": 30_532_122_624 - 48 * 2 * 128,  # less the norms of queries and keys
    "qwen3_235b_a22b": 235_093_634_560 - 94 * 2 * 128,
    "gpt2_124m": 124_439_808,
    "gpt2_1.5b": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "yi_6b": 6_061_035_520,
    "yi_34b": 34_388_917_248,
    "mistral_7b": 7_241_732_096,
    "mistral_nemo_12b": 12_247_782_400,
    "mistral_large_123b": 122_610_069_504,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "qwen2_7b": 7_615_616_512 - 28 * (3584 + 2 * 512),  # less biases of queries, keys, values
    "qwen2_32b": 32_763_876_352 - 64 * (5120 + 2 * 1024),
    "qwen2_72b": 72_706_203_648 - 80 * (8192 + 2 * 1024),
    "qwen3_8b": 8_190_735_360 - 36 * 2 * 128,
    "qwen3_14b": 14_768_307_200 - 40 * 2 * 128,
    "qwen3_32b": 32_762_123_264 - 64 * 2 * 128,
    "deepseek_moe_16b": 16_375_728_128,
    "dbrx": 131_596_523_520 + 81 * 6144,  # its norms have no biases
    "phi3.5_moe": 41_873_153_344 - 32 * 2 * (4096 + 1024) - 32_064,  # less biases
}

# Billions, as their papers and cards round them.
ROUNDED = {
    "moonlight_16b_a3b": 16.0,
    "kimi_k2": 1026.0,
    "glm_4.5": 355.0,
    "glm_4.5_air": 106.0,
    "gpt_oss_120b": 116.8,
    "gpt_oss_20b": 20.9,
    "qwen2_57b_a14b": 57.4,
    "grok_1": 314.0,
    "llama4_scout": 107.8,
    "llama4_maverick": 400.7,
}

# Narayanan et al., SC21 (arXiv 2104.04473), table 1: billions, layers, hidden size, heads; the
# vocabulary is 51,200 and the sequence 2,048 throughout.
SC21 = {
    "gpt_1.7b": (1.7, 24, 2304, 24),
    "gpt_3.6b": (3.6, 30, 3072, 32),
    "gpt_7.5b": (7.5, 36, 4096, 32),
    "gpt_18b": (18.4, 40, 6144, 48),
    "gpt_39b": (39.1, 48, 8192, 64),
    "gpt_76b": (76.1, 60, 10240, 80),
    "gpt_145b": (145.6, 80, 12288, 96),
    "gpt_310b": (310.1, 96, 16384, 128),
    "gpt_530b": (529.6, 105, 20480, 128),
    "gpt_1t": (1008.0, 128, 25600, 160),
}

SECTIONS = {
    "model": schema.Model,
    "parallelism": schema.Parallelism,
    "optimizer": schema.Optimizer,
    "data": schema.Data,
    "train": schema.Train,
    "precision": schema.Precision,
    "checkpoint": schema.Checkpoint,
    "launch": schema.Launch,
    "hardware/gpu": schema.Gpu,
    "hardware/node": schema.Node,
    "hardware/network": schema.Network,
}
PLACEHOLDER = CONF / "model" / "auto.yaml"

# (section, file) of every option that stands alone.
FACTS = [
    (section, path)
    for section in SECTIONS
    for path in sorted((CONF / section).glob("*.yaml"))
    if path != PLACEHOLDER
]
MODELS = [path.stem for section, path in FACTS if section == "model"]
HARDWARE = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    document = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(document, dict)
    return document


def load_model(name: str) -> schema.Model:
    return schema.Model.model_validate(load(CONF / "model" / f"{name}.yaml"))


def sc21_formula(layers: int, hidden: int, vocab: int, sequence: int) -> int:
    """P = 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h)), in integers (SC21, section 5.1)."""
    return 12 * layers * hidden**2 + 13 * layers * hidden + (vocab + sequence) * hidden


def composed(config_dir: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        document = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def conf_with_recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conf/ with recipes/ as its group `recipe`, as the launcher presents them to Hydra."""
    directory = tmp_path_factory.mktemp("facts") / "conf"
    shutil.copytree(CONF, directory)
    return directory


def without_null_leaves(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


@pytest.mark.parametrize(
    ("section", "path"), FACTS, ids=[f"{section}-{path.stem}" for section, path in FACTS]
)
def test_every_option_is_valid_by_itself(section: str, path: Path) -> None:
    SECTIONS[section].model_validate(load(path))


@pytest.mark.parametrize(
    ("section", "path"),
    [*FACTS, ("model", PLACEHOLDER)],
    ids=[f"{section}-{path.stem}" for section, path in [*FACTS, ("model", PLACEHOLDER)]],
)
def test_every_field_is_written_out_so_that_hydra_can_override_it(section: str, path: Path) -> None:
    made_later = {"schedule_lines"}  # read from a schedule's file at composition
    if section == "launch":
        assert set(load(path)) <= set(SECTIONS[section].model_fields)
        return  # Below.
    assert set(load(path)) == set(SECTIONS[section].model_fields) - made_later


def test_the_option_for_slurm_shows_every_key_of_a_slurm_job_with_its_default() -> None:
    written = load(CONF / "launch" / "slurm.yaml")
    fields = schema.Launch.model_fields
    assert set(written) == set(fields) - {"hosts", "start", "rendezvous_endpoint"}
    assert schema.Launch.model_validate(written) == schema.Launch(name="slurm")


@pytest.mark.parametrize("name", ["torchrun", "mpirun"])
def test_options_for_plain_hosts_show_their_keys_with_their_defaults(name: str) -> None:
    written = load(CONF / "launch" / f"{name}.yaml")
    assert {"hosts", "rendezvous_endpoint", "setup", "env", "secrets"} < set(written)
    assert schema.Launch.model_validate(written) == schema.Launch(name=name)


def test_the_placeholder_model_decides_nothing() -> None:
    assert without_null_leaves(load(PLACEHOLDER)) == {"name": "auto"}


@pytest.mark.parametrize("section", ["model", "parallelism", "data", "precision", "launch"])
def test_an_option_is_named_like_its_file(section: str) -> None:
    for path in (CONF / section).glob("*.yaml"):
        assert load(path)["name"] == path.stem


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_plain_yaml_reads_the_same_types_as_hydra(path: Path) -> None:
    # YAML 1.1 takes 3e-4 and 1e12 for text, OmegaConf for numbers: write neither.
    assert yaml.safe_load(path.read_text()) == load(path)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    assert count_parameters(load_model(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_parameter_counts_round_to_the_published_ones(name: str) -> None:
    assert count_parameters(load_model(name)) / 1e9 == pytest.approx(ROUNDED[name], rel=0.01)


@pytest.mark.parametrize("name", sorted(SC21))
def test_parameter_counts_equal_the_formula_of_sc21_and_its_final_norm(name: str) -> None:
    billions, layers, hidden, heads = SC21[name]
    formula = sc21_formula(layers, hidden, vocab=51200, sequence=2048)
    model = load_model(name)
    assert round(formula / 1e9, 1) == billions
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, hidden, heads)
    # Weight and bias of the final layernorm are not in the formula.
    assert count_parameters(model) == formula + 2 * hidden


def test_gpt3_counts_as_the_same_formula() -> None:
    # Brown et al. 2020, table 2.1: 96 layers of width 12,288, "175.0B".
    formula = sc21_formula(96, 12288, vocab=50257, sequence=2048)
    assert count_parameters(load_model("gpt3_175b")) == formula + 2 * 12288
    assert formula / 1e9 == pytest.approx(175.0, rel=0.003)


def test_the_quickstart_model_has_the_count_that_its_file_says() -> None:
    assert count_parameters(load_model("tiny")) == 853_120


def test_every_model_has_a_known_parameter_count() -> None:
    assert sorted(MODELS) == sorted([*PUBLISHED, *ROUNDED, *SC21, "gpt3_175b", "tiny"])


@pytest.mark.parametrize("name", MODELS)
def test_the_parameter_count_stands_in_the_models_file(name: str) -> None:
    text = (CONF / "model" / f"{name}.yaml").read_text()
    assert f"{count_parameters(load_model(name)):,}" in text


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_composes_and_is_valid(name: str) -> None:
    hardware = schema.Hardware.model_validate(composed(CONF, f"hardware={name}")["hardware"])
    assert hardware.name == name
    if name == "local":
        assert hardware.gpu is None
        return
    assert hardware.gpus_per_node is not None
    assert f"x{hardware.num_nodes * hardware.gpus_per_node}" == name[name.index("x") :]
    assert hardware.gpu is not None
    assert hardware.gpu.name.lower().startswith(name[: name.index("x")])
    # A node more can be asked for on the command line, so even one node knows its network.
    assert hardware.node is not None
    assert hardware.network is not None


@pytest.mark.parametrize(
    "path",
    [path for section in ("gpu", "node", "network")
     for path in sorted((CONF / "hardware" / section).glob("*.yaml"))],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_every_number_of_a_device_has_its_source_beside_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    for above, line in pairwise(lines):
        key, _, value = line.partition(":")
        if value.strip() and not key.startswith("name"):
            assert "#" in value or above.startswith("#"), f"{path.name}: {line}"


def test_the_default_run_is_complete_but_for_the_model() -> None:
    document = composed(CONF)
    assert set(document) == set(schema.Run.model_fields)
    assert document["model"]["name"] == "auto"
    model = load(CONF / "model" / "tiny.yaml")
    run = schema.Run.model_validate(document | {"model": model})
    assert (run.hardware.name, run.parallelism.name, run.data.name) == (
        "local",
        "3d",
        "stdlib_text",
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_to_a_valid_run(name: str, conf_with_recipes: Path) -> None:
    run = schema.Run.model_validate(composed(conf_with_recipes, f"recipe={name}"))
    assert run.recipe == name
    assert check_run(run) == []


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "quickstart"])
def test_a_recipe_is_named_after_its_model_and_hardware(name: str, conf_with_recipes: Path) -> None:
    run = schema.Run.model_validate(composed(conf_with_recipes, f"recipe={name}"))
    assert name == f"{run.model.name}_{run.hardware.name}"


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("gpt2_124m_h100x8", 10e9),
        ("llama3_8b_h100x64", 160e9),
        ("llama3_70b_h100x512", 1.4e12),
        ("gpt3_175b_a100x1024", 300e9),
    ],
)
def test_a_recipes_steps_spend_the_token_budget_that_it_states(
    name: str, tokens: float, conf_with_recipes: Path
) -> None:
    train = composed(conf_with_recipes, f"recipe={name}")["train"]
    spent = train["steps"] * train["global_batch_size"] * train["sequence_length"]
    assert spent == pytest.approx(tokens, rel=1e-4)


def test_the_command_line_wins_over_a_recipe(conf_with_recipes: Path) -> None:
    document = composed(
        conf_with_recipes, "recipe=quickstart", "train.steps=7", "precision=bf16", "name=mine"
    )
    assert document["train"]["steps"] == 7
    assert document["precision"]["compute"] == "bf16"
    assert (document["name"], document["recipe"]) == ("mine", "quickstart")
    assert document["model"]["name"] == "tiny"


def test_sections_cover_the_whole_schema() -> None:
    records = {
        name
        for name, field in schema.Run.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, schema.Record)
    }
    assert records == {section.split("/")[0] for section in SECTIONS}
