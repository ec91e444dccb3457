"""Does every key say what its change means to a resumed run, and is every change seen?"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.resume import find_changes, refuse_changes, resume_classes
from launcher.config.resume_table import render_resume_keys
from launcher.config.rules import with_value
from launcher.config.schema import Record, Run
from launcher.config.validate import record_in
from tests.factory import LLAMA3_70B, TINY, h100, make_run

CLASSES = dict(resume_classes())


def test_every_key_of_the_schema_has_a_class():
    """A key without one: add Safe[...], Resharding[...], Numerics[...] or Forbidden[...]."""
    assert [key for key, kind in CLASSES.items() if kind is None] == []


def test_every_leaf_of_the_schema_is_walked():
    def count(record: type[Record]) -> int:
        inner = [record_in(info.annotation) for info in record.model_fields.values()]
        return sum(count(found) if found else 1 for found in inner)

    groups = {key for key in CLASSES if any(other.startswith(f"{key}.") for other in CLASSES)}
    assert len(CLASSES) - len(groups) == count(Run)
    assert groups == {
        "model.rope_scaling", "model.experts", "model.latent", "model.encoder", "hardware.gpu",
        "hardware.gpu.triton_attention",
        "hardware.gpu.cudnn_attention", "hardware.gpu.kernels", "hardware.node", "hardware.network",
        "data.sources",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.vocab_size", "forbidden"), ("model.hidden_size", "forbidden"),
        ("model.rope_scaling.factor", "forbidden"), ("optimizer.name", "forbidden"),
        ("optimizer.learning_rate", "numerics"), ("train.global_batch_size", "numerics"),
        ("train.seed", "numerics"), ("train.steps", "numerics"),
        ("parallelism.tp", "resharding"), ("parallelism.zero_stage", "resharding"),
        ("train.num_microbatches", "resharding"), ("hardware.num_nodes", "resharding"),
        ("train.log_every", "safe"), ("checkpoint.keep", "safe"), ("launch.partition", "safe"),
        ("hardware.gpu.memory_bytes", "safe"),
    ],
)  # fmt: skip
def test_the_class_of_a_key(key, kind):
    assert CLASSES[key] == kind


def test_a_run_does_not_differ_from_itself():
    assert find_changes(make_run(), make_run()) == ()


def test_changes_come_with_class_and_both_values():
    new = make_run(**{"train.seed": 7, "parallelism.tp": 2, "train.log_every": 5})
    assert [(c.key, c.kind, c.old, c.new) for c in find_changes(make_run(), new)] == [
        ("parallelism.tp", "resharding", 1, 2),
        ("train.seed", "numerics", 1234, 7),
        ("train.log_every", "safe", 1, 5),
    ]


def test_a_default_written_out_is_no_change():
    model = {key: value for key, value in TINY.items() if key != "num_kv_heads"}
    written = model | {"num_kv_heads": 4, "head_dim": 8}
    assert find_changes(make_run(model=model), make_run(model=written)) == ()


def test_a_group_that_comes_or_goes_is_a_change_with_all_its_keys():
    one = make_run(hardware=h100(), model=LLAMA3_70B)
    changes = find_changes(one, with_value(one, "hardware.network", None))
    assert {change.key for change in changes} == {
        "hardware.network", *(f"hardware.network.{key}" for key in ("name", "bandwidth")),
        "hardware.network.latency_s",
        *(f"hardware.network.{key}" for key in ("efficiency", "oversubscription", "contention")),
    }  # fmt: skip
    assert {change.kind for change in changes} == {"safe"}


def test_forbidden_changes_are_refused_all_at_once_with_both_values():
    new = make_run(model=TINY | {"vocab_size": 512, "bias": True}, **{"train.seed": 1})
    findings = refuse_changes(find_changes(make_run(), new))
    assert [str(finding) for finding in findings] == [
        "model.vocab_size=512 [forbidden-on-resume]: the run was started with 256, and what it has "
        "learned means nothing under another value. Try model.vocab_size=256 to continue, or "
        "`launch run` for a new run.",
        "model.bias=true [forbidden-on-resume]: the run was started with false, and what it has "
        "learned means nothing under another value. Try model.bias=false to continue, or "
        "`launch run` for a new run.",
    ]


def test_the_docs_page_is_what_the_schema_says():
    """Regenerate: python -m launcher.config.resume_table > docs/resume_keys.md."""
    page = Path(__file__).resolve().parents[2] / "docs" / "resume_keys.md"
    assert page.read_text(encoding="utf-8") == render_resume_keys()
