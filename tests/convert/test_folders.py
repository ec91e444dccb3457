"""Are folders checked before use, all mistakes at once, and written whole or not at all?"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from launcher.checkpoint.reader import verify
from launcher.config.schema import Model
from launcher.convert import new_folder
from launcher.convert.config_json import read_config, render_config
from launcher.convert.convert import Conversion, convert
from launcher.convert.families import GPT2 as GPT2_FAMILY
from launcher.convert.families import LLAMA as LLAMA_FAMILY
from launcher.convert.source import open_weights
from launcher.convert.tensor_file import NewTensor, TensorFileWriter, TornFile, read_header
from launcher.errors import ConfigError, RunFailed
from launcher.plan.costs import parameter_table
from tests.convert.folders import (
    GPT2,
    LLAMA,
    OUR_GPT,
    OUR_LLAMA,
    random_weights,
    read_all,
    save_tensors,
    write_checkpoint,
    write_hf_folder,
)

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [p for p in sorted((ROOT / "conf" / "model").glob("*.yaml")) if p.stem != "auto"]


def model_of(config: dict) -> Model:
    fields = {"num_layers": 2, "hidden_size": 16, "num_heads": 4, "vocab_size": 33}
    if config is GPT2:
        extra = {
            "ffn_hidden_size": 64, "max_sequence_length": 64, "position": "learned", "bias": True,
            "norm": "layernorm", "activation": "gelu_tanh", "tie_embeddings": True,
        }  # fmt: skip
    else:
        extra = {"ffn_hidden_size": 24, "max_sequence_length": 64, "num_kv_heads": 2}
    return Model.model_validate({"name": "m", **fields, **extra})


@pytest.fixture
def llama(tmp_path):
    """A sharded folder, as published."""
    write_hf_folder(tmp_path / "llama", LLAMA_FAMILY, model_of(LLAMA), LLAMA, num_files=4)
    return tmp_path / "llama"


@pytest.fixture
def gpt2(tmp_path):
    write_hf_folder(tmp_path / "gpt2", GPT2_FAMILY, model_of(GPT2), GPT2)
    return tmp_path / "gpt2"


def refused(folder: Path, **asked) -> str:
    target = folder.parent / "out"
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ConfigError) as caught:
        convert(Conversion(**{"source": folder, "destination": target, **asked}))
    assert sorted(folder.parent.iterdir()) == before, "something was left behind"
    return str(caught.value)


def to_launch(folder: Path, **asked) -> Path:
    target = folder.parent / "converted"
    convert(Conversion(source=folder, destination=target, **asked))
    return target


# Reading


def test_a_converted_folder_is_a_checkpoint_with_the_models_yaml(llama):
    target = to_launch(llama, max_shard_size="3KB")
    assert verify(target) is None
    assert len(list(target.glob("weights_*.safetensors"))) > 2
    text = (target / "conf" / "model" / "converted.yaml").read_text()
    assert text.startswith("# From config.json of llama (LlamaForCausalLM): 4,976 ")
    assert "num_kv_heads: 2\n" in text
    weights = open_weights(target, "launch")
    stored = {}
    for path in llama.glob("*.safetensors"):
        stored |= load_file(path)
    ours = read_all(weights.source)
    assert np.array_equal(ours["head.weight"], stored["lm_head.weight"])
    q_proj = stored["model.layers.1.self_attn.q_proj.weight"]
    assert np.array_equal(ours["layers.1.attention.q_proj.weight"], q_proj)


def test_any_box_of_a_folder_is_the_box_of_the_whole_tensor(gpt2):
    source = open_weights(gpt2, "hf").source
    generator = np.random.default_rng(0)
    for name, whole in read_all(source).items():
        for _ in range(5):
            starts = tuple(int(generator.integers(size)) for size in whole.shape)
            sizes = tuple(
                int(generator.integers(1, size - start + 1))
                for start, size in zip(starts, whole.shape, strict=True)
            )
            box = tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))
            assert np.array_equal(source.read(name, starts, sizes), whole[box]), name


def test_a_fused_transposed_projection_comes_apart_into_query_key_value(gpt2):
    stored = load_file(gpt2 / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    ours = read_all(open_weights(gpt2, "hf").source)
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        expected = stored[:, 16 * number : 16 * (number + 1)].T
        assert np.array_equal(ours[f"layers.0.attention.{name}.weight"], expected)


def test_names_without_prefix_and_old_masks_are_read(gpt2):
    """As in openai-community/gpt2, which was saved from the bare model."""
    stored = load_file(gpt2 / "model.safetensors")
    bare = {name.removeprefix("transformer."): values for name, values in stored.items()}
    bare |= {f"h.{n}.attn.bias": np.zeros((1, 1, 4, 4), np.float32) for n in range(2)}
    save_file(bare, gpt2 / "model.safetensors")
    ours = read_all(open_weights(gpt2, "hf").source)
    assert np.array_equal(ours["embedding.tokens.weight"], stored["transformer.wte.weight"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_half_precision_becomes_float32_masters(llama, dtype):
    for path in llama.glob("*.safetensors"):
        save_file({name: v.astype(dtype) for name, v in load_file(path).items()}, path)
    for values in read_all(open_weights(to_launch(llama), "launch").source).values():
        assert values.dtype == np.float32
        assert np.array_equal(values, values.astype(dtype).astype(np.float32))


def test_a_tied_head_that_is_stored_too_must_be_the_embedding(tmp_path):
    model = model_of(LLAMA).model_copy(update={"tie_embeddings": True})
    folder, config = tmp_path / "tied", LLAMA | {"tie_word_embeddings": True}
    tensors = write_hf_folder(folder, LLAMA_FAMILY, model, config)
    embedding = tensors["model.embed_tokens.weight"]
    save_tensors(folder, tensors | {"lm_head.weight": embedding.copy()})
    assert "head.weight" not in open_weights(folder, "hf").source.names()
    save_tensors(folder, tensors | {"lm_head.weight": embedding + 1})
    assert "lm_head.weight [hf-tensor]: config.json ties it" in refused(folder)
    untied = open_weights(folder, "hf", overrides={"tie_embeddings": False})
    assert np.array_equal(read_all(untied.source)["head.weight"], embedding + 1)


# Refusing


def test_every_unsupported_key_is_named_at_once(llama):
    config = LLAMA | {
        "attention_bias": True, "hidden_act": "gelu", "num_hidden_layers": "2",
        "num_key_value_heads": 3, "rope_scaling": {"type": "yarn", "factor": 4.0},
        "quantization_config": {"bits": 4}, "final_logit_softcapping": 30.0,
    }  # fmt: skip
    (llama / "config.json").write_text(json.dumps(config))
    said = refused(llama)
    for start in (
        "config.json:mlp_bias=False [hf-config-key]: attention_bias says True",
        "config.json:hidden_act=gelu [hf-config-key]: not computed here. Legal here: silu.",
        "config.json:num_hidden_layers=2 [hf-config-key]: input should be a valid integer",
        "model.num_kv_heads=3 [kv-heads-divide-heads]: 3 does not divide model.num_heads=4",
        "config.json:rope_scaling.rope_type=yarn [hf-config-key]: not computed here",
        "config.json:quantization_config [hf-config-key]: quantised weights are not read",
        "config.json:final_logit_softcapping=30.0 [hf-config-key]: no key that is known here",
    ):
        assert f"\n{start}" in f"\n{said}"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "config.json:architectures=MambaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "bert"}, "config.json:architectures=bert [hf-architecture]"),
        ({}, "[hf-architecture]"),
        ("[]", "config.json [hf-config-readable]: it is not a JSON object"),
        ("{", "config.json [hf-config-readable]: it is not a JSON object"),
        (LLAMA | {"rope_scaling": 3}, "config.json:rope_scaling=3 [hf-config-key]: not an object"),
        (LLAMA | {"rope_scaling": {"type": "llama3"}}, "config.json:rope_parameters.factor=null"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        (GPT2 | {"resid_pdrop": 0.0}, "resid_pdrop=0.0 [hf-config-key]: embd_pdrop says 0.1"),
    ],
)
def test_a_config_that_is_not_one_of_ours_is_refused(llama, config, said):
    text = config if isinstance(config, str) else json.dumps(config)
    (llama / "config.json").write_text(text)
    assert said in refused(llama)


def test_what_two_keys_disagree_on_can_be_said(gpt2):
    (gpt2 / "config.json").write_text(json.dumps(GPT2 | {"resid_pdrop": 0.0}))
    target = to_launch(gpt2, overrides={"dropout": 0.0})
    assert "\ndropout: 0.0\n" in (target / "conf/model/converted.yaml").read_text()


def test_torn_missing_and_wrong_files_are_named_at_once(llama):
    first, second, third, fourth = sorted(llama.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-4])
    second.write_bytes(second.read_bytes()[:6])
    third.unlink()
    tensors = load_file(fourth)
    names = sorted(tensors)
    lost, narrow = names[0], names[1]
    del tensors[lost]
    tensors[narrow] = tensors[narrow][..., :-1].copy()
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(4, np.float32)
    save_file(tensors, fourth)
    said = refused(llama)
    assert f"{first} [hf-weights-readable]: it should have" in said
    assert f"{second} [hf-weights-readable]: it has 6 bytes and so no header" in said
    assert f"{third} [hf-weights-readable]: No such file" in said
    assert f"{fourth} [hf-weights-readable]: the index says that it holds {lost}" in said
    assert f"{lost} [hf-tensor]: no file holds it" in said
    assert f"{narrow} [hf-tensor]: its shape is" in said
    assert "model.layers.0.self_attn.q_norm.weight [hf-tensor]: LlamaForCausalLM as it" in said


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"[]", b'{"a":3}', b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":"x","data_offsets":[0,4]}}',
        b"\xff", b"[" * 5000,
    ],
)  # fmt: skip
def test_a_broken_header_is_a_torn_file_and_no_traceback(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(TornFile):
        read_header(path)


def test_a_shard_that_no_index_names_is_missed(llama):
    (llama / "model.safetensors.index.json").unlink()
    (llama / "model-00002-of-00004.safetensors").unlink()
    assert "model-00002-of-00004.safetensors [hf-weights-readable]: No such file" in refused(llama)


def test_pickles_and_files_elsewhere_are_never_read(llama):
    index = llama / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    assert "../other/model.safetensors is not in the folder itself" in refused(llama)
    index.write_text("{}")
    assert "it is no index" in refused(llama)
    index.unlink()
    for path in llama.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    assert "*.bin files are pickles, which can run code, and are never read" in refused(llama)


def test_a_model_that_no_class_computes_is_refused_with_the_reasons(tmp_path):
    model = OUR_LLAMA.model_copy(update={"norm": "layernorm", "position": "none"})
    source = write_checkpoint(tmp_path / "ours", model, random_weights(model))
    said = refused(source)
    assert "model=tiny [hf-architecture]" in said
    assert "model.norm=layernorm" in said
    assert "model.position=none" in said


def test_a_checkpoint_that_lacks_a_tensor_or_has_a_flipped_byte_is_refused(tmp_path):
    weights = random_weights(OUR_LLAMA)
    source = write_checkpoint(tmp_path / "ours", OUR_LLAMA, weights)
    path = source / "rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    (source / "rank_00002.safetensors").unlink()
    said = refused(source)
    assert "rank_00001.safetensors: its checksum does not match" in said
    assert "rank_00002.safetensors: No such file" in said
    del weights["layers.0.attention.q_proj.weight"]
    other = write_checkpoint(tmp_path / "less", OUR_LLAMA, weights)
    assert "layers.0.attention.q_proj.weight [weights-fit-model]: the weights have no" in refused(
        other
    )


def test_flags_without_a_meaning_are_refused_together(llama):
    said = refused(llama, to="hf", step=3, dtype="bfloat16", tokenizer=llama, max_shard_size="many")
    for flag in ("--to=hf", "--step=3", "--dtype=bfloat16", "--tokenizer=", "--max-shard-size="):
        assert f"\n{flag}" in f"\n{said}"


# Writing


def test_nothing_is_overwritten(llama):
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        target = llama.parent / "there"
        make(target)
        with pytest.raises(ConfigError, match="it exists, and nothing is overwritten"):
            convert(Conversion(source=llama, destination=target))
        target.rmdir() if target.is_dir() else target.unlink()


def test_a_full_disk_is_foreseen(llama, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(new_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert "kB will be written, and 1.00 kB are free there" in refused(llama)


@pytest.mark.parametrize("to", ["launch", "hf"])
def test_a_disk_that_fills_on_the_way_leaves_nothing(llama, monkeypatch, to):
    source = llama if to == "launch" else to_launch(llama)
    before = sorted(llama.parent.iterdir())
    limit = 4000
    code = (
        "import resource, signal, sys; from launcher.__main__ import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "convert", str(source), str(llama.parent / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "out [convert-write]: File too large; nothing is left of it" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(llama.parent.iterdir()) == before


def test_no_space_is_said_in_words(llama, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("launcher.convert.to_launch.write_file", full)
    with pytest.raises(RunFailed, match="the disk is full; nothing is left of it"):
        to_launch(llama)
    assert sorted(path.name for path in llama.parent.iterdir()) == ["llama"]


def test_the_folder_appears_at_the_end_and_whole(llama, monkeypatch):
    target, seen = llama.parent / "converted", []
    rename = Path.rename

    def watch(path, new):
        if new == target:
            seen.append((target.exists(), verify(path)))
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", watch)
    to_launch(llama)
    assert seen == [(False, None)]


def test_tokenizer_files_travel_with_the_weights(llama):
    (llama / "tokenizer.json").write_text('{"a": 1}')
    (llama / "generation_config.json").write_text('{"temperature": 0.6}')
    (llama / "config.json").write_text(json.dumps(LLAMA | {"bos_token_id": 7}))
    ours = to_launch(llama)
    back = llama.parent / "back"
    convert(Conversion(source=ours, destination=back))
    assert (back / "tokenizer.json").read_text() == '{"a": 1}'
    assert (back / "generation_config.json").read_text() == '{"temperature": 0.6}'
    assert json.loads((back / "config.json").read_text())["bos_token_id"] == 7
    # A run that started from these weights knows where they came from.
    origin = {"train": {"init_from": str(ours)}}
    run = write_checkpoint(
        llama.parent / "run" / "checkpoints" / "step_00000004", OUR_LLAMA,
        random_weights(OUR_LLAMA), run=origin,
    ).parents[1]  # fmt: skip
    convert(Conversion(source=run, destination=llama.parent / "trained"))
    assert (llama.parent / "trained" / "tokenizer.json").exists()


def test_without_tokenizer_none_is_invented(tmp_path):
    ours = write_checkpoint(tmp_path / "ours", OUR_GPT, random_weights(OUR_GPT))
    convert(Conversion(source=ours, destination=tmp_path / "hf"))
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    said = refused(ours, tokenizer=tmp_path / "hf")
    assert "--tokenizer=" in said
    assert "there are no tokenizer files in it" in said


def test_a_run_gives_its_newest_checkpoint_or_the_one_that_is_named(tmp_path):
    for step in (4, 12):
        write_checkpoint(
            tmp_path / "run" / "checkpoints" / f"step_{step:08d}", OUR_GPT,
            random_weights(OUR_GPT, seed=step),
        )  # fmt: skip
    for step, seed in ((None, 12), (4, 4)):
        target = tmp_path / f"hf{seed}"
        convert(Conversion(source=tmp_path / "run", destination=target, step=step))
        expected = random_weights(OUR_GPT, seed=seed)["embedding.tokens.weight"]
        with safe_open(target / "model.safetensors", "np") as file:
            assert np.array_equal(file.get_tensor("transformer.wte.weight"), expected)
    assert "no checkpoint of step 5. Legal here: 4, 12." in refused(tmp_path / "run", step=5)


def test_what_is_no_source_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").touch()
    (tmp_path / "file").touch()
    for name, said in (
        ("nowhere", "there is no such folder"), ("file", "not a folder"),
        ("empty", "neither a Hugging Face folder"), ("run", "this run has no checkpoint"),
    ):  # fmt: skip
        assert said in refused(tmp_path / name)


# Streaming


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_memory_stays_below_twice_the_largest_tensor(tmp_path, family):
    """Peak resident memory beyond what the interpreter and its modules take, both ways.

    The whole model is several times its largest tensor, so holding it would be seen.
    """
    shape = {"num_layers": 4, "hidden_size": 512, "num_heads": 8, "vocab_size": 8192}
    own, width = (OUR_LLAMA, 2048) if family == "llama" else (OUR_GPT, 8192)
    model = own.model_copy(update=shape | {"ffn_hidden_size": width})
    largest = 4 * 8192 * 512
    weights = ones(model)
    write_checkpoint(tmp_path / "ours", model, weights, num_files=2)
    assert sum(values.nbytes for values in weights.values()) > 5 * largest
    steps = (
        ("ours", "hf", ["--max-shard-size", "60MB"]),
        ("hf", "again", []),
        ("ours", "half", ["--dtype", "bfloat16"]),
    )
    for source, target, flags in steps:
        peak = peak_bytes(tmp_path / source, tmp_path / target, flags)
        assert peak < 2 * largest, (target, peak)


def ones(model: Model) -> dict[str, np.ndarray]:
    return {spec.name: np.ones(spec.shape, np.float32) for spec in parameter_table(model)}


def peak_bytes(source: Path, target: Path, flags: list[str]) -> int:
    """Growth of the peak resident memory over that before the first byte of weights.

    VmHWM is that of the program itself; getrusage would begin with the peak of its parent.
    """
    code = (
        "import re, sys\n"
        "from launcher import cli\n"
        "import launcher.convert.convert, launcher.config.partial\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+([0-9]+) kB', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "code = cli.main()\n"
        "print(peak() - before, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "convert", str(source), str(target), *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return 1024 * int(result.stderr.split()[-1])


def test_the_writer_is_read_by_the_safetensors_package(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer = TensorFileWriter(
        tmp_path / "x", [NewTensor(name=n, dtype="F32", shape=(2, 3)) for n in "ab"]
    )
    writer.append(values[:1])
    writer.append(values[1:])
    writer.append(values.T.reshape(2, 3))
    writer.close()
    with safe_open(tmp_path / "x", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert np.array_equal(file.get_tensor("a"), values)
        assert np.array_equal(file.get_tensor("b"), values.T.reshape(2, 3))


@pytest.mark.parametrize("path", OPTIONS)
def test_every_model_of_ours_has_a_class_that_reads_back_as_itself(path, tmp_path):
    fields = yaml.safe_load(path.read_text())
    model = Model.model_validate(fields)
    if model.experts or model.latent or model.encoder:  # planned only: no weights of ours
        key = "encoder" if model.encoder else "experts"
        with pytest.raises(ConfigError, match=rf"hf-architecture.*model\.{key}="):
            render_config(model, "bfloat16")
        return
    _, text = render_config(model, "bfloat16")
    (tmp_path / "config.json").write_text(text)
    described, findings = read_config(tmp_path / "config.json", model.name)
    assert findings == []
    assert described is not None
    assert described.model == model.model_copy(
        update={"num_kv_heads": fields["num_kv_heads"], "head_dim": fields["head_dim"]}
    )
