"""Can every rule be broken, does it say what is wrong, and does its advice mend it?"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.config.load import load_run
from launcher.config.rule import divisors
from launcher.config.rules import RULES, check_run, get_value, obeys_rules, with_value
from launcher.config.rules_table import BASIC_CHECKS, render_rules, render_rules_markdown
from launcher.config.schema import RopeScaling, Run, Source
from launcher.errors import ConfigError, Finding
from tests.factory import CPU, LLAMA3_70B, TINY, TINY_GPT, h100, make_run

ROOT = Path(__file__).resolve().parents[2]
LLAMA3_8B = TINY | {
    "num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8,
    "ffn_hidden_size": 14336, "vocab_size": 128256, "max_sequence_length": 8192,
}  # fmt: skip
OPEN = {"tp": None, "pp": None, "dp": None}
SCALING = {
    "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position": 64
}  # fmt: skip


def eight(**parallelism: Any) -> Run:
    """The tiny model on one node of eight, degrees open unless given."""
    return make_run(hardware=h100(num_nodes=1), parallelism={**OPEN, **parallelism})


def on_hosts(*hosts: str, name: str = "torchrun", **launch: Any) -> Run:
    """Two plain hosts, as many as are named or not."""
    launch |= {"name": name, "hosts": hosts}
    return make_run(hardware=h100(2), parallelism=OPEN, launch=launch)


def on_eight_experts(width: int, shared: int = 0, **parallelism: Any) -> Run:
    """Eight heads and experts of this width on two nodes of eight."""
    experts = {**FEW_EXPERTS, "ffn_hidden_size": width, "num_shared": shared}
    heads = {"num_heads": 8, "num_kv_heads": 8, "experts": experts}
    return make_run(model=TINY | heads, hardware=h100(2), parallelism={**OPEN, **parallelism})


FEW_EXPERTS = {"num_experts": 4, "experts_per_token": 2, "ffn_hidden_size": 32}
READER = {"num_layers": 2}
IN_CONTAINER = {"container": "apptainer", "image": "/i.sif"}
EXAMPLES: dict[str, list[Callable[[], Run]]] = {
    "encoder-of-plain-blocks": [
        lambda: make_run(model=TINY | {"encoder": READER, "experts": FEW_EXPERTS})
    ],
    "encoder-whole-sequence": [
        lambda: make_run(model=TINY | {"encoder": READER}, parallelism={"cp": 2, "tp": 1, "pp": 1})
    ],
    "experts-per-token": [
        lambda: make_run(model=TINY | {"experts": FEW_EXPERTS | {"experts_per_token": 5}})
    ],
    "dense-layers-at-most-layers": [
        lambda: make_run(model=TINY | {"experts": FEW_EXPERTS | {"num_dense_layers": 5}})
    ],
    "heads-divide-hidden": [lambda: make_run(model=TINY | {"num_heads": 6, "num_kv_heads": None})],
    "kv-heads-divide-heads": [lambda: make_run(model=TINY | {"num_kv_heads": 3})],
    "rope-needs-even-heads": [
        lambda: make_run(model=TINY | {"head_dim": 7}),
        lambda: make_run(model=TINY | {"hidden_size": 36}),
    ],
    "rope-scaling-sound": [
        lambda: make_run(model=TINY | {"rope_scaling": SCALING}),
        lambda: make_run(model=TINY_GPT | {"rope_scaling": SCALING | {"low_freq_factor": 1.0}}),
    ],
    "vocabulary-holds-bytes": [lambda: make_run(model=TINY | {"vocab_size": 255})],
    "tp-divides-heads": [
        lambda: eight(tp=3),
        lambda: make_run(model=LLAMA3_8B, hardware=h100(1), parallelism={**OPEN, "tp": 6}),
    ],
    "tp-fits-kv-heads": [
        lambda: make_run(
            model=TINY | {"num_heads": 12, "num_kv_heads": 4, "hidden_size": 48},
            hardware=h100(6, 1), parallelism={**OPEN, "tp": 6},
        )
    ],
    "tp-divides-ffn": [
        lambda: make_run(
            model=TINY | {"ffn_hidden_size": 62}, hardware=h100(1), parallelism={**OPEN, "tp": 4}
        )
    ],
    "tp-fits-vocabulary": [
        lambda: make_run(
            model=TINY | {"vocab_size": 5, "num_kv_heads": 4},
            data={"kind": "tokens", "path": "x"},
            hardware=h100(1), parallelism={**OPEN, "tp": 4},
        )
    ],
    "pp-at-most-layers": [
        lambda: eight(pp=8),
        lambda: with_value(eight(pp=4, vpp=2, schedule="zb_v"), "model.num_layers", 3),
        lambda: with_value(eight(pp=2, schedule="zb_h1"), "model.num_layers", 1),
    ],
    "mesh-fills-devices": [
        lambda: eight(tp=1, pp=2, dp=2),
        lambda: eight(tp=4, pp=4),
        lambda: eight(tp=3, pp=2, dp=1),
        lambda: eight(tp=2, cp=3, pp=2),
        lambda: make_run(hardware=CPU | {"gpus_per_node": 4}),
        lambda: eight(tp=1, dp=3),
        lambda: eight(tp=1, cp=5, cp_mode="ulysses", dp=3),
        lambda: eight(tp=2, cp=5, pp=1),
    ],
    "sequence-parallel-needs-tp": [lambda: eight(sequence_parallel=True, tp=1)],
    "sequence-parallel-divides-sequence": [
        lambda: make_run(
            **{"train.sequence_length": 15, "parallelism.sequence_parallel": True,
               "parallelism.tp": 2}
        )
    ],
    "order-complete": [
        lambda: make_run(parallelism={"order": ["tp", "dp", "pp"]}),
        lambda: make_run(parallelism={"order": ["tp", "cp", "ep", "pp"]}),
        lambda: make_run(parallelism={"order": ["tp", "tp", "cp", "dp"]}),
    ],
    "shard-size-divides-replicas": [
        lambda: eight(tp=1, pp=1, shard_size=3),
        lambda: eight(tp=1, pp=1, shard_size=4, zero_stage=0),
    ],
    "tp-divides-experts": [
        lambda: on_eight_experts(36, tp=8),
        lambda: on_eight_experts(36, tp=8, ep=2, dp=2, shared=1),
    ],
    "ep-divides-experts": [lambda: eight(ep=2)],
    "ep-divides-replicas": [lambda: make_run(model=TINY | {"experts": FEW_EXPERTS},
                                             parallelism={"ep": 4, "dp": 2, "pp": 1, "tp": 1})],
    "cp-divides-sequence": [
        lambda: make_run(**{"train.sequence_length": 34, "parallelism.cp": 2}),
        lambda: make_run(
            **{"train.sequence_length": 33, "parallelism.cp": 2, "parallelism.cp_mode": "ulysses"}
        ),
        lambda: make_run(**{"train.sequence_length": 65, "parallelism.cp": 2}),
    ],
    "ulysses-divides-heads": [
        lambda: eight(cp=8, cp_mode="ulysses"),
        lambda: eight(tp=2, cp=4, cp_mode="ulysses"),
    ],
    "ulysses-fits-kv-heads": [
        lambda: make_run(
            model=TINY | {"num_heads": 12, "num_kv_heads": 4, "hidden_size": 48},
            hardware=h100(6, 1), parallelism={**OPEN, "cp": 6, "cp_mode": "ulysses"},
        )
    ],
    "attention-dropout-needs-ulysses": [
        lambda: make_run(model=TINY | {"attention_dropout": 0.1}, parallelism={"cp": 2}),
        lambda: make_run(
            model=TINY | {"attention_dropout": 0.1},
            parallelism={"cp": 2, "cp_mode": "all_gather"},
        ),
        lambda: make_run(
            model=TINY | {"attention_dropout": 0.1}, hardware=h100(1),
            parallelism={**OPEN, "tp": 2, "cp": 4},
        ),
    ],
    "zero3-without-pipeline": [lambda: eight(tp=1, pp=2, zero_stage=3)],
    "fsdp2-shards": [lambda: eight(engine="fsdp2", zero_stage=0)],
    "fsdp2-without-split-backward": [
        lambda: eight(engine="fsdp2", schedule="zb_h1"),
        lambda: eight(engine="fsdp2", schedule="zb_v", vpp=2),
        lambda: eight(engine="fsdp2", schedule="dualpipev", vpp=2),
    ],
    "vpp-suits-schedule": [
        lambda: eight(vpp=2),
        lambda: eight(schedule="zb_v"),
        lambda: eight(schedule="dualpipev", vpp=3),
        lambda: eight(schedule="zb_v", pp=4),
    ],
    "layers-per-stage-counts-stages": [
        lambda: make_run(parallelism={"pp": 2, "layers_per_stage": [1, 2, 1]}),
        lambda: make_run(parallelism={"pp": 2, "layers_per_stage": []}),
        lambda: make_run(
            parallelism={"pp": 2, "vpp": 2, "schedule": "interleaved_1f1b",
                         "layers_per_stage": [2, 2]}
        ),
    ],
    "layers-per-stage-adds-up": [
        lambda: make_run(parallelism={"pp": 2, "layers_per_stage": [1, 2]})
    ],
    "chunks-at-most-layers": [
        lambda: eight(pp=2, vpp=3, schedule="interleaved_1f1b"),
        lambda: eight(pp=4, vpp=2, schedule="dualpipev"),
        lambda: eight(tp=1, pp=4, dp=2, vpp=2, schedule="zb_v"),
        lambda: eight(pp=4, dp=2, vpp=2, schedule="zb_v"),
        lambda: with_value(eight(pp=2, vpp=2, schedule="zb_v"), "model.num_layers", 3),
        lambda: with_value(eight(pp=2, vpp=2, schedule="zb_v"), "model.num_layers", 1),
        lambda: with_value(eight(pp=8, vpp=2, schedule="zb_h1"), "model.num_layers", 5),
    ],
    "microbatches-suit-schedule": [
        lambda: make_run(
            hardware=h100(1), parallelism={**OPEN, "pp": 2, "vpp": 2, "schedule": "dualpipev"},
            train={"num_microbatches": 3},
        )
    ],
    "schedule-needs-pipeline": [
        lambda: eight(pp=1, schedule="zb_h1"),
        lambda: eight(pp=1, schedule="interleaved_1f1b", vpp=2),
        lambda: eight(pp=1, schedule="zb_v", vpp=2),
    ],
    "split-backward-without-compile": [
        lambda: make_run(
            hardware=h100(1), parallelism={**OPEN, "pp": 2, "schedule": "zb_h1"},
            train={"compile": True},
        )
    ],
    "tokens-need-path": [
        lambda kind=kind: make_run(data={"kind": kind}) for kind in ("tokens", "store", "megatron")
    ],
    "path-is-read": [lambda: make_run(data={"path": "x"})],
    "mixture-has-sources": [lambda: make_run(data={"kind": "mixture"})],
    "sources-are-mixed": [
        lambda: make_run(data={"sources": [{"kind": "store", "path": "x", "weight": 1}]})
    ],
    "documents-need-borders": [
        lambda: make_run(data={"kind": "tokens", "path": "x", "packing": "documents"}),
        lambda: make_run(
            data={
                "kind": "mixture",
                "packing": "documents",
                "sources": [{"kind": "store", "path": "x"}, {"kind": "tokens", "path": "y"}],
            }
        ),
    ],
    "tokens-hold-vocabulary": [
        lambda: make_run(
            model=LLAMA3_70B | {"num_layers": 4},
            data={"kind": "tokens", "path": "x", "dtype": "uint16"},
        )
    ],
    "hardware-complete": [
        lambda: make_run(hardware={"name": "mine", "gpus_per_node": 1}),
        lambda: make_run(hardware={**h100(1, 1), "node": None}),
    ],
    "network-between-nodes": [
        lambda: make_run(hardware=h100(2) | {"network": None}, parallelism=OPEN)
    ],
    "core-share-of-cpu": [
        lambda: make_run(
            hardware=h100(2) | {"gpu": h100(2)["gpu"] | {"core_share": 0.5}}, parallelism=OPEN
        )
    ],
    "bf16-on-this-device": [
        lambda: make_run(
            hardware=h100(2) | {"gpu": h100(2)["gpu"] | {"has_bf16": False}}, parallelism=OPEN,
            precision={"name": "bf16", "compute": "bf16"},
        )
    ],
    "speeds-count": [lambda: make_run(hardware=h100(2), **{"hardware.speeds": (1.0, 1.0, 1.0)})],
    "speeds-not-searched": [
        lambda: make_run(
            hardware=h100(2), **{"hardware.speeds": (1.0, 0.5), "parallelism.name": "auto"}
        )
    ],
    "sequence-within-positions": [lambda: make_run(**{"train.sequence_length": 65})],
    "batch-at-most": [
        lambda: make_run(
            train={"micro_batch_size": 2**10, "num_microbatches": 2**11, "global_batch_size": None}
        )
    ],
    "batch-triangle": [
        lambda: make_run(**{"train.global_batch_size": 5}),
        lambda: make_run(train={"micro_batch_size": 4, "num_microbatches": None,
                                "global_batch_size": 7}),
    ],
    "project-of-a-tracker": [
        lambda: make_run(**{"train.tracker_project": "p"}),
        lambda: make_run(**{"train.tracker_project": "p", "train.tracker": "tensorboard"}),
    ],
    "learning-rate-floor": [lambda: make_run(optimizer={"min_learning_rate": 0.5})],
    "time-limit-readable": [
        lambda text=text: make_run(**{"launch.time_limit": text})
        for text in ("tomorrow", "", "12:0:0", "1 day", "-5", "12:00:00\n", "\u0661:00")
    ],
    "notice-within-time-limit": [
        lambda: make_run(**{"launch.signal_seconds": 500, "launch.time_limit": "5:00"})
    ],
    "container-has-image": [
        lambda: make_run(**{"launch.container": "pyxis"}),
        lambda: make_run(**{"launch.image": "/a.sif"}),
        lambda: make_run(launch={"container": "apptainer", "image": "a.sif"}),
    ],
    "container-named": [lambda: make_run(**{"launch.mounts": ("/data",)})],
    "mounts-readable": [
        lambda mount=mount: make_run(launch={**IN_CONTAINER, "mounts": (mount,)})
        for mount in ("data", "/a,/b", "/a:b", "/a:/b:rx")
    ],
    "container-options-readable": [
        lambda: make_run(launch={**IN_CONTAINER, "container_options": ("rocm",)}),
        lambda: make_run(
            launch={"container": "pyxis", "image": "i", "container_options": ("--nv",)}
        ),
    ],
    "env-names": [
        lambda name=name: make_run(**{"launch.env": {name: "x"}})
        for name in ("a b", "RANK", "SLURM_X", "WANDB_API_KEY", "my_secret", "1A", "$(id)")
    ],
    "secrets-by-name": [lambda: make_run(**{"launch.secrets": ("HF_TOKEN=abc",)})],
    "no-secret-in-setup": [
        lambda: make_run(**{"launch.setup": ("export HF_TOKEN=abc",)}),
        lambda: make_run(**{"launch.setup": ("A=1 DB_PASSWORD='x'",)}),
    ],
    "one-environment": [lambda: make_run(launch={"conda": "a", "venv": "/b"})],
    "gres-has-gpus": [
        lambda gres=gres: make_run(hardware=h100(1), launch={"gres": gres}, parallelism=OPEN)
        for gres in ("gpu:4", "gpu:h100:4", "fs:1")
    ],
    "sbatch-options-free": [
        lambda option=option: make_run(**{"launch.sbatch_options": (option,)})
        for option in ("--partition=x", "-p x", "mail", "--wrap=rm", "--export=A=1")
    ],
    "follow-ups-without-requeue": [lambda: make_run(**{"launch.follow_ups": 2})],
    "hosts-without-slurm": [
        lambda: make_run(launch={"name": "slurm", "hosts": ("n1",)}),
        lambda: make_run(launch={"hosts": ("n1",)}),
    ],
    "hosts-readable": [
        lambda hosts=hosts: on_hosts(*hosts)
        for hosts in (("a", "a"), ("a b", "c"), ("-oProxyCommand=x", "c"), ("me@a", "c"),
                      ("a;id", "c"), ("$(id)", "c"), ("", "c"), ("a\nb", "c"), ("a", "localhost"),
                      ("127.0.0.1", "a"), ("\u0430", "c"))
    ],
    "hosts-fill-nodes": [
        lambda: on_hosts("a"),
        lambda: on_hosts("a", "b", "c"),
        lambda: on_hosts("a", name="mpirun"),
        lambda: on_hosts(),
        lambda: on_hosts(start="manual"),
    ],
    "endpoint-readable": [
        lambda text=text: on_hosts("a", "b", rendezvous_endpoint=text)
        for text in ("a", "a:", "a:0", "a:65536", ":29500", "a:x", "a b:29500", "b:29500",
                     "localhost:29500", "a:29500\n", "a:\u0661")
    ] + [lambda: make_run(**{"launch.rendezvous_endpoint": "a:29500"})],
    "container-needs-slurm": [
        lambda: on_hosts("a", "b", **IN_CONTAINER),
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name, examples in EXAMPLES.items()
    for number, example in enumerate(examples)
]


def found(run: Run, rule: str) -> Finding | None:
    return next((finding for finding in check_run(run) if finding.rule == rule), None)


def as_value(typed: object) -> Any:
    """What Hydra makes of a value as it is typed."""
    if str(typed).startswith("[{"):
        sources = yaml.safe_load(str(typed).replace(":", ": "))
        return tuple(Source.model_validate(source) for source in sources)
    value = yaml.safe_load(str(typed)) if not isinstance(typed, str) or ":" not in typed else typed
    return tuple(value) if isinstance(value, list) else value


def test_every_rule_has_an_example_that_breaks_it():
    assert list(EXAMPLES) == [rule.id for rule in RULES]


def test_a_plain_run_breaks_no_rule():
    assert check_run(make_run()) == []
    assert obeys_rules(make_run())


@pytest.mark.parametrize(("name", "example"), CASES)
def test_a_broken_rule_says_which_key_and_why(name, example):
    run = example()
    finding = found(run, name)
    assert finding is not None
    rule = next(rule for rule in RULES if rule.id == name)
    assert finding.field == rule.field
    assert len(finding.reason) > 10
    assert not finding.reason.endswith(".")
    assert not obeys_rules(run)
    assert str(finding).startswith(finding.field)
    assert f" [{name}]: {finding.reason}." in str(finding)


@pytest.mark.parametrize(("name", "example"), CASES)
def test_every_legal_value_passes_where_it_is_put_in(name, example):
    run = example()
    finding = found(run, name)
    rule = next(rule for rule in RULES if rule.id == name)
    before = {finding.rule for finding in check_run(run)}
    for typed in finding.legal:
        changed = with_value(run, rule.field, as_value(typed))
        assert found(changed, name) is None, typed
        assert {finding.rule for finding in check_run(changed)} <= before - {name}, typed


# The fix of hardware-complete chooses options: it is applied in a test of its own below.
@pytest.mark.parametrize(
    ("name", "example"), [case for case in CASES if "hardware-complete" not in case.id]
)
def test_the_offered_fix_mends_the_run(name, example):
    run = example()
    fix = found(run, name).fix
    assert fix, "a finding without a way out"
    before = {finding.rule for finding in check_run(run)}
    for part in fix.split(" "):
        field, equals, typed = part.partition("=")
        assert equals
        value = typed.strip("'\"") if field in ("launch.time_limit", "data.path") else None
        run = with_value(run, field, value or as_value(typed))
    assert {finding.rule for finding in check_run(run)} <= before - {name}
    Run.model_validate(run.model_dump())


def test_a_fix_that_chooses_options_mends_hardware_without_facts(tmp_path):
    (tmp_path / "hardware").mkdir()
    facts = "name: mine\ndevice: cuda\nnum_nodes: 1\ngpus_per_node: 8\n"
    (tmp_path / "hardware" / "mine.yaml").write_text(facts)
    with pytest.raises(ConfigError) as refusal:
        load_run(["hardware=mine", "model=tiny"], [tmp_path])
    (finding,) = refusal.value.findings
    assert finding.rule == "hardware-complete"
    run = load_run(["hardware=mine", "model=tiny", *finding.fix.split()], [tmp_path]).run
    assert run.hardware.gpu.name == "H100-SXM5-80GB"


def test_rule_ids_are_unique_kebab_case():
    ids = [rule.id for rule in RULES] + [row[0] for row in BASIC_CHECKS]
    assert len(ids) == len(set(ids))
    for name in ids:
        assert all(part.isalnum() and part == part.lower() for part in name.split("-")), name


def test_rules_blame_keys_of_the_schema():
    run = make_run(model=TINY | {"experts": FEW_EXPERTS})
    for rule in RULES:
        get_value(run, rule.field)


def test_open_values_break_no_rule():
    run = make_run(
        hardware=CPU,
        parallelism=OPEN,
        train={"micro_batch_size": None, "num_microbatches": None, "global_batch_size": 7},
    )
    assert check_run(run) == []


def test_the_text_of_the_design_page():
    run = make_run(model=LLAMA3_8B, hardware=h100(1), parallelism={**OPEN, "tp": 6})
    assert str(found(run, "tp-divides-heads")) == (
        "parallelism.tp=6 [tp-divides-heads]: 6 does not divide model.num_heads=32. "
        "Legal here: 1, 2, 4, 8. Try parallelism.tp=4."
    )


def test_a_mesh_that_cannot_be_filled_offers_the_nearest_one():
    finding = found(eight(tp=4, pp=4), "mesh-fills-devices")
    assert str(finding) == (
        "parallelism.dp [mesh-fills-devices]: tp 4 x pp 4 = 16 does not divide the 8 devices of "
        "1 x 8. Try parallelism.tp=4 parallelism.pp=2 parallelism.dp=1."
    )


def test_degrees_that_are_open_stay_open_in_the_fix():
    finding = found(eight(pp=3), "mesh-fills-devices")
    assert finding.fix == "parallelism.pp=2"


def test_replicas_leave_open_axes_no_more_than_they_can_take():
    run = make_run(hardware=h100(num_nodes=64), parallelism={**OPEN, "dp": 3, "pp": 2})
    assert found(run, "mesh-fills-devices").legal == [64, 128, 256]  # tp at most 4


def test_a_full_layout_on_this_machine_is_offered_fewer_processes():
    finding = found(make_run(hardware=CPU | {"gpus_per_node": 4}), "mesh-fills-devices")
    assert finding.fix == "hardware.gpus_per_node=1"


def test_records_and_lists_are_shown_as_they_are_typed():
    run = with_value(make_run(), "model.rope_scaling", RopeScaling(**SCALING))
    assert str(found(run, "rope-scaling-sound")).startswith(
        "model.rope_scaling={factor:8.0,low_freq_factor:4.0,"
    )
    order = found(EXAMPLES["order-complete"][0](), "order-complete")
    assert str(order).startswith("parallelism.order=[tp,dp,pp] [order-complete]: ")


def test_docs_rules_is_what_the_table_renders():
    """Regenerate with `python -m launcher.config.rules_table > docs/rules.md`."""
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == render_rules_markdown()


def test_launch_rules_prints_every_rule_within_the_width():
    text = render_rules(width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for rule in RULES:
        assert f"{rule.id}  ({rule.field})\n" in text


def test_every_rule_id_in_the_code_is_in_the_table():
    """A finding with an id that `launch rules` does not know would be a secret."""
    known = {rule.id for rule in RULES} | {row[0] for row in BASIC_CHECKS}
    used = set()
    for path in (ROOT / "launcher").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                used |= {
                    keyword.value.value
                    for keyword in node.keywords
                    if keyword.arg == "rule" and isinstance(keyword.value, ast.Constant)
                }
    assert {"unknown-key", "unknown-verb"} < used
    assert used - known == set()
    assert {row[0] for row in BASIC_CHECKS} - used == set(), "listed, and never said"


def test_divisors_are_those_that_leave_no_rest() -> None:
    for number in range(1, 400):
        every = [one for one in range(1, number + 1) if number % one == 0]
        assert divisors(number) == every
        assert divisors(number, limit=12) == [one for one in every if one <= 12]
