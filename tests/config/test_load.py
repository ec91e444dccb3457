"""Does hardware=local become this machine, and is a model chosen that suits the hardware?"""

from __future__ import annotations

import pytest

from launcher.config.choose_model import LADDER, choose_model
from launcher.config.compose import compose_run
from launcher.config.load import Loaded, load_run
from launcher.config.local_hardware import LocalGpu, LocalMachine, detect_machine, gpu_options
from launcher.config.schema import Model
from launcher.errors import ConfigError, Finding
from launcher.plan.costs import count_parameters
from tests.config.trees import write_tree

GIB = 2**30
H100 = LocalGpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB)
L4 = LocalGpu(name="NVIDIA L4", memory_bytes=23 * GIB)


def machine(gpus: int = 0, cores: int = 2, kind: LocalGpu = H100) -> LocalMachine:
    return LocalMachine(
        gpus=(kind,) * gpus, cores=cores, clock_hz=2e9, flops_per_cycle=32, memory_bytes=16 * GIB
    )


def load(*overrides: str, here: LocalMachine | None = None, dirs=()) -> Loaded:
    return load_run(overrides, dirs, lambda: here or machine())


def refused(*overrides: str, here: LocalMachine | None = None) -> list[Finding]:
    with pytest.raises(ConfigError) as refusal:
        load(*overrides, here=here)
    return list(refusal.value.findings)


# This machine


def test_the_quickstart_runs_on_the_cpu_where_there_is_no_gpu():
    loaded = load()
    hardware = loaded.run.hardware
    assert (hardware.device, hardware.gpus_per_node) == ("cpu", 4)
    assert hardware.gpu.memory_bytes == 4 * GIB, "a quarter of the machine's memory"
    assert "hardware=local: 4 cpu processes (0 GPUs, 2 cores)" in loaded.decisions


def test_the_quickstart_falls_back_to_the_cpu_with_one_gpu_and_says_why():
    loaded = load(here=machine(gpus=1))
    assert loaded.run.hardware.device == "cpu"
    assert (
        "hardware=local: 4 cpu processes (1 GPU, 2 cores; 4 processes would need 4 GPUs)"
        in loaded.decisions
    )


def test_the_quickstart_uses_four_of_eight_gpus():
    run = load(here=machine(gpus=8)).run
    assert (run.hardware.device, run.hardware.gpus_per_node) == ("cuda", 4)
    assert run.hardware.gpu.memory_bytes == 80 * GIB
    assert run.hardware.gpu.peak_flops.bf16 > 9e14
    assert run.hardware.node.host_memory_bytes == 16 * GIB


def test_an_open_layout_uses_all_gpus():
    run = load("hardware=local", "parallelism=3d", here=machine(gpus=8)).run
    assert (run.hardware.device, run.hardware.gpus_per_node) == ("cuda", 8)


def test_an_unknown_gpu_has_its_own_memory():
    gpu = load("hardware=local", here=machine(gpus=1, kind=L4)).run.hardware.gpu
    assert (gpu.name, gpu.memory_bytes) == ("NVIDIA L4", 23 * GIB)


def test_cpu_can_be_asked_for_where_there_are_gpus():
    loaded = load("hardware.device=cpu", here=machine(gpus=8))
    assert loaded.run.hardware.device == "cpu"
    assert "hardware=local: 4 cpu processes (8 GPUs, 2 cores)" in loaded.decisions


def test_too_many_processes_are_the_fault_of_the_degrees_that_ask_for_them():
    assert [
        (f.field, f.value, f.rule) for f in refused("parallelism=ddp", "parallelism.dp=512")
    ] == [("parallelism.dp", 512, "mesh-fills-devices")]
    assert [(f.field, f.rule) for f in refused("parallelism.dp=2147483648")] == [
        ("parallelism.dp", "out-of-range")
    ]
    assert [(f.field, f.rule) for f in refused("hardware.gpus_per_node=257")] == [
        ("hardware.gpus_per_node", "out-of-range")
    ]


def test_cuda_without_a_gpu_is_one_finding_among_all_others():
    findings = refused("hardware.device=cuda", "train.steps=x", "parallelism.tpp=1")
    assert [(f.field, f.rule) for f in findings] == [
        ("hardware.device", "no-local-gpu"),
        ("parallelism.tpp", "unknown-key"),
        ("train.steps", "wrong-type"),
    ]
    assert findings[0].fix == "hardware.device=cpu"


def test_a_device_that_does_not_exist_is_left_to_the_schema():
    (finding,) = refused("hardware.device=tpu")
    assert (finding.rule, finding.legal) == ("unknown-value", ("cuda", "cpu", "auto"))


def test_facts_that_the_user_gives_win_over_detected_ones():
    hardware = load(
        "hardware.gpu.memory_bytes=1000000000", "hardware.gpu.peak_flops.fp32=1e12",
        "hardware.node.latency_s=0.5",
    ).run.hardware  # fmt: skip
    assert hardware.gpu.memory_bytes == 10**9
    assert hardware.gpu.peak_flops.fp32 == 1e12
    assert hardware.gpu.peak_flops.bf16 > 0, "what is not given is still detected"
    assert hardware.node.latency_s == 0.5


def test_devices_per_node_can_be_given():
    hardware = load("hardware.gpus_per_node=8", "parallelism.dp=2").run.hardware
    assert hardware.gpus_per_node == 8
    assert hardware.gpu.memory_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("hardware.gpus_per_node=0", "out-of-range"),
        ("hardware.gpus_per_node=-3", "out-of-range"),
        ("hardware.gpus_per_node=x", "wrong-type"),
        ("hardware.gpus_per_node=[1]", "wrong-type"),
        ("hardware={gpu: [1]}", "wrong-type"),
        ("hardware.gpu=h100", "wrong-type"),
        ("hardware.gpu.peak_flops=3", "wrong-type"),
        ("parallelism.tp=0", "out-of-range"),
        ("parallelism.tp=x", "wrong-type"),
        ("~parallelism", "missing-key"),
        ("~hardware", "missing-key"),
        ("hardware.num_nodes=x", "wrong-type"),
    ],
)
def test_wrong_hardware_is_explained_however_early_it_is_read(override, rule):
    assert rule in [finding.rule for finding in refused(override)]
    assert rule in [finding.rule for finding in refused(override, here=machine(gpus=8))]


def test_other_hardware_never_looks_at_this_machine():
    def forbidden() -> LocalMachine:
        raise AssertionError("looked")

    assert load_run(["hardware=h100x64"], machine=forbidden).run.hardware.gpus_per_node == 8


def test_this_machine_can_be_looked_at():
    here = detect_machine()
    assert here.cores >= 1
    assert here.clock_hz > 1e8
    assert here.memory_bytes > 10**8


def test_a_machine_without_proc_gets_cautious_defaults(tmp_path):
    here = detect_machine(tmp_path, tmp_path)
    assert (here.clock_hz, here.flops_per_cycle, here.memory_bytes) == (2.5e9, 16, 8 * GIB)


def test_cpu_facts_are_read_from_proc(tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t: fpu avx2 fma\ncpu MHz\t\t: 3000.5\n\nflags\t: x\n")
    (tmp_path / "meminfo").write_text("MemTotal:       1024 kB\n")
    here = detect_machine(tmp_path, tmp_path)
    assert (here.clock_hz, here.flops_per_cycle, here.memory_bytes) == (3000.5e6, 32, 2**20)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("NVIDIA H100 80GB HBM3", ("h100_sxm", "hgx_h100")),
        ("NVIDIA H100 PCIe", ("h100_pcie_80gb", "pcie5")),
        ("NVIDIA H200", ("h200_sxm", "hgx_h100")),
        ("NVIDIA H20", ("h20", "hgx_h100")),
        ("NVIDIA H800", ("h800_sxm", "hgx_h800")),
        ("NVIDIA B200", ("b200_sxm", "hgx_b200")),
        ("NVIDIA GB200", ("gb200", "nvl72")),
        ("NVIDIA GH200 480GB", ("gh200_96gb", "gh200")),
        ("NVIDIA A100-SXM4-80GB", ("a100_80gb", "hgx_a100")),
        ("NVIDIA A100-SXM4-40GB", ("a100_40gb", "hgx_a100")),
        ("NVIDIA A100-PCIE-40GB", ("a100_pcie_40gb", "pcie4")),
        ("NVIDIA A100 80GB PCIe", ("a100_pcie_80gb", "pcie4")),
        ("NVIDIA A800-SXM4-80GB", ("a100_80gb", "hgx_a800")),
        ("Tesla V100-SXM2-32GB", ("v100_sxm2_32gb", "dgx1_v100")),
        ("Tesla V100-SXM2-16GB", ("v100_sxm2_16gb", "dgx1_v100")),
        ("NVIDIA L40S", ("l40s", "pcie4")),
        ("NVIDIA A40", ("a40", "pcie4")),
        ("NVIDIA GeForce RTX 4090", ("rtx_4090", "pcie4")),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA L4", None),
    ],
)
def test_gpus_are_known_by_their_product_name(name, options):
    assert gpu_options(name) == options
    if options:
        gpu, node = options
        words = ["hardware=h100x8", f"hardware/gpu={gpu}", f"hardware/node={node}"]
        assert compose_run(words).findings == ()


def test_speeds_that_a_gpu_is_given_for_want_of_facts_are_said():
    decisions = load("hardware=local", here=machine(gpus=1, kind=L4)).decisions
    assert any("no facts of NVIDIA L4, so speeds of A100 on PCIe 4.0" in line for line in decisions)


# The model


def test_the_ladder_counts_are_those_of_the_yaml():
    for name, parameters in LADDER:
        model = Model.model_validate(compose_run([f"model={name}"]).values["model"])
        assert count_parameters(model) == parameters, name


def test_the_ladder_descends():
    assert list(LADDER) == sorted(LADDER, key=lambda row: -row[1])


@pytest.mark.parametrize(
    ("hardware", "model"),
    [
        ("local", "tiny"),
        ("h100x8", "llama3_8b"),
        ("h100x64", "llama3_70b"),
        ("h100x16384", "llama3_405b"),
        ("a100x64", "llama3_70b"),
    ],
)
def test_a_model_that_suits_the_hardware_is_chosen_and_named(hardware, model):
    loaded = load(f"hardware={hardware}")
    assert loaded.run.model.name == model
    assert any(line.startswith(f"model={model}: suits {hardware}") for line in loaded.decisions)


def test_local_gpus_get_a_model_of_their_size():
    assert load("hardware=local", here=machine(gpus=8)).run.model.name == "llama3_8b"
    assert load("hardware=local", here=machine(gpus=1, kind=L4)).run.model.name == "gpt2_124m"


def test_memory_that_the_user_gives_counts_for_the_choice():
    loaded = load("hardware=local", "hardware.gpu.memory_bytes=1000", here=machine(gpus=1))
    assert loaded.run.model.name == "tiny"


@pytest.mark.parametrize(("name", "parameters"), LADDER)
def test_state_fills_at_most_half_of_the_memory(name, parameters):
    assert choose_model("cuda", 36 * parameters) == name
    assert choose_model("cuda", 36 * parameters - 1) != name
    assert choose_model("cpu", 10**18) == "tiny"


def test_keys_of_the_model_apply_to_the_chosen_one():
    loaded = load("hardware=h100x8", "model.num_layers=4")
    assert (loaded.run.model.name, loaded.run.model.num_layers) == ("llama3_8b", 4)


def test_model_auto_can_be_typed():
    assert load("model=auto").run.model.name == "tiny"
    assert load("model=auto", "hardware=h100x8").run.model.name == "llama3_8b"


def test_what_the_recipe_no_longer_says_is_said():
    decisions = load("parallelism=ddp").decisions
    assert decisions[0].startswith("parallelism=ddp: as named; recipe=quickstart says nothing")


def test_an_own_conf_tree_is_used_throughout(tmp_path):
    write_tree(tmp_path, hardware__mine="defaults: [h100x8]\nname: mine\nnum_nodes: 2\n")
    run = load("hardware=mine", dirs=(tmp_path,)).run
    assert (run.hardware.num_nodes, run.model.name) == (2, "llama3_8b")
