"""Where nothing fits: the leanest layout is the leanest of all, and what is advised fits."""

import json
import shlex

import pytest

from launcher.cli import main
from launcher.config.load import load_run
from launcher.plan.estimate import estimate_layout_memory
from launcher.plan.fill import close_shared
from launcher.plan.search_choice import changed, layout_of
from launcher.plan.search_cost import Coster
from launcher.plan.search_jobs import mesh_of
from launcher.plan.search_leanest import leanest_of, may_fit
from launcher.plan.search_memory import Memory
from launcher.plan.search_space import build_space, enumerate_choices
from tests.factory import TINY, TINY_GPT, h100, make_run

MODEL = TINY | {
    "num_layers": 6, "hidden_size": 512, "num_heads": 8, "num_kv_heads": 4,
    "ffn_hidden_size": 2048, "vocab_size": 8192, "max_sequence_length": 1024,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "experts_per_token": 2, "ffn_hidden_size": 2048}
MODELS = {
    "dense": MODEL,
    "tied": TINY_GPT | {"hidden_size": 512, "num_heads": 8, "ffn_hidden_size": 2048},
    "window": MODEL | {"sliding_window": 128},
    "experts": MODEL | {"experts": EXPERTS},
    "first blocks dense": MODEL | {"experts": EXPERTS | {"num_dense_layers": 2}},
    "few blocks": MODEL | {"num_layers": 2, "experts": EXPERTS | {"num_dense_layers": 1}},
}


def small_space(model, fixed=(), has_planned=False, nodes=1, **overrides):
    hardware = h100(num_nodes=nodes, gpus_per_node=4)
    hardware["gpu"] = hardware["gpu"] | {"context_bytes": 10**8}
    run = make_run(
        model=model, hardware=hardware,
        parallelism={"tp": None, "pp": None, "dp": None, "recompute": None},
        train={
            "sequence_length": min(512, model["max_sequence_length"]), "global_batch_size": 8,
            "micro_batch_size": None, "num_microbatches": None,
        },
        precision={"name": "bf16", "compute": "bf16"},
    )  # fmt: skip
    run = changed(close_shared(run), **overrides)
    return build_space(run, frozenset(fixed), has_planned)


def every_peak(space):
    """Of every layout in one order of ranks, by the plan's own function."""
    for choice in enumerate_choices(space):
        yield estimate_layout_memory(*layout_of(space.run, choice)).peak_bytes, choice


def one_order(model, **others):
    """A space of a few thousand layouts."""
    sections = {"parallelism": {"order": ("tp", "cp", "dp", "pp")}}
    return small_space(model, {"order", *others.pop("fixed", ())}, **sections, **others)


@pytest.mark.parametrize("name", MODELS)
def test_the_leanest_layout_is_the_leanest_of_every_layout_tried(name):
    space = one_order(MODELS[name])
    peak, _, choice = min((peak, each.tie, each) for peak, each in every_peak(space))
    found = leanest_of(space)
    assert (found.peak_bytes, found.choice) == (peak, choice)
    assert found.state_bytes <= peak
    # Something takes at most so much if and only if the leanest does.
    assert leanest_of(space, enough=peak, most=peak).choice == choice
    assert leanest_of(space, enough=peak - 1, most=peak - 1).choice is None
    for larger in (peak + peak // 8, 2 * peak):
        first = leanest_of(space, enough=larger, most=larger)
        assert peak <= first.peak_bytes <= larger
    assert leanest_of(space, enough=2 * peak).peak_bytes <= 2 * peak


@pytest.mark.parametrize(
    ("name", "has_planned"), [*[(name, False) for name in MODELS], ("few blocks", True)]
)
def test_no_bound_of_memory_is_above_what_a_layout_takes(name, has_planned):
    space = one_order(MODELS[name], has_planned=has_planned)
    coster = Coster(space.run, space.devices)
    memory = Memory(coster, space.sharding)
    for peak, choice in every_peak(space):
        mesh, pp, dp = mesh_of(choice), choice.pp, choice.dp
        sharding = (choice.engine, choice.zero_stage, choice.offload)
        cut = coster.cut(mesh, coster.chain_of(choice))
        bounds = {
            "average": memory.average_bytes(),
            "least": memory.least_bytes(mesh, pp, dp, sharding),
            "state": memory.least_state(mesh, [(pp, dp, choice.num_microbatches)]),
            "split": memory.split_bytes(mesh, pp, dp, sharding, cut),
        }
        if 1 < pp <= space.run.model.num_layers:
            chunks = memory.first_peak(choice.schedule, pp, choice.vpp, choice.num_microbatches)
            bounds["first"] = memory.first_bytes(mesh, pp, dp, sharding, chunks)
        assert peak == memory.peak_bytes(choice)
        assert {key: bytes_ for key, bytes_ in bounds.items() if bytes_ > peak} == {}, choice


def test_devices_that_together_have_no_room_for_the_state_are_not_searched():
    space = small_space(MODEL)
    assert may_fit(space)
    small = space.run.hardware.gpu.model_copy(update={"memory_bytes": 110 * 10**6})
    assert not may_fit(build_space(changed(space.run, hardware={"gpu": small}), frozenset()))


def launch(capsys, *words):
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def key_of(word):
    return word.partition("=")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("model=llama3_405b", "hardware=h100x64"),
        ("model=gpt_310b", "hardware=h100x64", "train.global_batch_size=64"),
        ("model=mixtral_8x7b", "hardware=h100x8"),
        ("model=llama3_8b", "hardware=local"),
        ("model=gpt3_175b", "hardware=v100x64", "precision=fp32", "parallelism.schedule=zb_v"),
        ("model=llama3_8b", "hardware=h100x8", "model.max_sequence_length=524288",
         "train.sequence_length=524288", "parallelism.tp=1", "parallelism.cp=1"),
        ("model=llama3_8b", "hardware=h100x8", "parallelism.tp=1", "parallelism.pp=1",
         "parallelism.zero_stage=0", "parallelism.order=[dp,tp,cp,pp]"),
        ("model=llama3_70b", "hardware=h100x8", "parallelism=zero1"),
    ],
)  # fmt: skip
def test_everything_that_would_fit_fits_when_it_is_typed(capsys, words):
    code, out, _ = launch(capsys, "search", "--json", *words)
    nearest = json.loads(out)["nearest"]
    assert code == 3
    assert nearest
    for entry in nearest:
        _, verb, *typed = shlex.split(entry["command"])
        code, plan, err = launch(capsys, verb, "--json", *typed)
        assert (code, json.loads(plan)["memory"]["fits"]) == (0, True), err
        assert entry["memory"]["fits"]
        others = [word for word in words if key_of(word) != key_of(entry["change"])]
        code, _, err = launch(capsys, "search", *others, entry["change"])
        assert code == 0, (entry["change"], err)
    assert launch(capsys, "search", "--json", *words)[1] == out


def test_devices_are_as_large_as_the_leanest_layout_needs(capsys):
    _, out, _ = launch(capsys, "search", "--json", "model=gpt_310b", "hardware=h100x64")
    document = json.loads(out)
    change = next(one["change"] for one in document["nearest"] if "memory_bytes" in one["change"])
    size = int(change.partition("=")[2])
    assert size % 2**30 == 0
    assert int(0.94 * (size - 2**30)) < document["missing"]["peak_bytes"] <= int(0.94 * size)


@pytest.mark.parametrize("words", [(), ("parallelism.tp=2",), ("parallelism=3d",)])
def test_advice_on_a_machine_without_a_network_is_accepted(capsys, words):
    words = ("model=llama3_8b", "hardware=local", *words)
    plan = json.loads(launch(capsys, "plan", "--json", *words)[1])
    fixes = {warning["id"]: warning["fix"].split() for warning in plan["warnings"]}
    assert "does-not-fit" in fixes
    for fix in fixes.values():
        keys = {key_of(word) for word in fix}
        kept = [word for word in words if key_of(word) not in keys]
        assert launch(capsys, "plan", "--json", *kept, *fix)[0] in (0, 3), fix


def test_half_the_processes_of_a_node_are_advised_with_degrees_that_they_can_have(capsys):
    words = (
        "model=gpt_1.7b", "hardware=h100x8", "hardware.node.host_memory_bytes=40000000000",
        "parallelism.pp=1", "parallelism.tp=8",
    )  # fmt: skip
    plan = json.loads(launch(capsys, "plan", "--json", *words)[1])
    fix = next(one["fix"] for one in plan["warnings"] if one["id"] == "host-memory")
    assert fix == "hardware.gpus_per_node=4 parallelism.tp=null"
    code, out, _ = launch(capsys, "plan", "--json", *words[:-1], *fix.split())
    assert code == 0
    assert "host-memory" not in [one["id"] for one in json.loads(out)["warnings"]]


def test_the_search_of_a_run_that_fits_asks_for_no_leanest_layout(monkeypatch):
    from launcher.plan import search_advice

    monkeypatch.setattr(search_advice, "leanest_of", lambda *_, **__: pytest.fail("asked"))
    run = load_run(["model=llama3_8b", "hardware=h100x8"], ()).run
    assert search_advice.search_layouts(run, frozenset()).best
