"""Hugging Face folders and checkpoints for tests: tiny, random, made without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from launcher.checkpoint.boxes import flat_range_boxes
from launcher.checkpoint.files import Entry, write_file
from launcher.checkpoint.manifest import Manifest, Piece, TensorRecord, manifest_text
from launcher.config.schema import Model
from launcher.convert.families import Family
from launcher.convert.hf_folder import stored_entries, stored_shape
from launcher.plan.costs import parameter_table
from tests.factory import TINY, TINY_GPT

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "intermediate_size": 24, "vocab_size": 33, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
    "torch_dtype": "float32",
}  # fmt: skip
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 2, "n_embd": 16,
    "n_head": 4, "vocab_size": 33, "n_positions": 64, "activation_function": "gelu_new",
}  # fmt: skip
OUR_LLAMA = Model.model_validate(TINY | {"vocab_size": 97})
OUR_GPT = Model.model_validate(TINY_GPT | {"vocab_size": 97})


def random_weights(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter of a model of ours, norms and biases too."""
    generator = np.random.default_rng(seed)
    return {
        spec.name: generator.standard_normal(spec.shape, dtype=np.float32)
        for spec in parameter_table(model)
    }


def write_hf_folder(
    folder: Path, family: Family, model: Model, config: dict[str, Any], num_files: int = 1
) -> dict[str, np.ndarray]:
    """Random weights under their names, as the safetensors package writes them."""
    shapes = {spec.name: spec.shape for spec in parameter_table(model)}
    generator = np.random.default_rng(1)
    tensors = {
        name: generator.standard_normal(stored_shape(shapes, entry, parts), dtype=np.float32)
        for name, entry, parts in stored_entries(family, model)
    }
    save_tensors(folder, tensors, num_files)
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def save_tensors(folder: Path, tensors: dict[str, np.ndarray], num_files: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    places = {}
    for number in range(num_files):
        name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        held = {key: tensors[key] for key in list(tensors)[number::num_files]}
        save_file(held, folder / name)
        places |= dict.fromkeys(held, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path, model: Model, weights: dict[str, np.ndarray], num_files: int = 3,
    run: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A checkpoint of weights alone, every tensor cut like a flat ZeRO partition."""
    folder.mkdir(parents=True)
    files, pieces = {}, {name: [] for name in weights}
    for rank in range(num_files):
        file, entries, chunks = f"rank_{rank:05d}.safetensors", [], []
        for name, array in weights.items():
            start, stop = (array.size * part // num_files for part in (rank, rank + 1))
            for box in flat_range_boxes(array.shape, start, stop):
                key = f"weight/{name}@{box.offsets}"
                entries.append(Entry(key=key, shape=box.sizes))
                chunks.append(array[box.slices()].tobytes())
                pieces[name].append(Piece(box=box, file=file, key=key))
        files[file] = write_file(folder / file, entries, chunks)
    manifest = Manifest(
        step=0, consumed_samples=0, consumed_tokens=0, number=1, saved_at=0.0, seed=0,
        files=files, run={"model": model.model_dump(mode="json"), **(run or {})},
        tensors={
            f"weight/{name}": TensorRecord(shape=weights[name].shape, pieces=tuple(held))
            for name, held in pieces.items()
        },
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest_text(manifest))
    return folder


def read_all(source: Any) -> dict[str, np.ndarray]:
    """Every tensor of a source, whole."""
    whole = {}
    for name in source.names():
        shape = source.shape(name)
        whole[name] = np.array(source.read(name, (0,) * len(shape), shape))
    return whole
