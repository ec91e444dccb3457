"""Rules on where tokens come from and how samples are made of them."""

from __future__ import annotations

from launcher.config.rule import Rule
from launcher.config.schema import Run

_PATHS = {
    "store": "the folder that `launch tokenize` made",
    "megatron": "the files of Megatron-LM without .bin and .idx",
    "tokens": "the file that holds the token ids",
}
_DTYPE_LIMITS = {"uint8": 2**8, "uint16": 2**16}


def _path(run: Run) -> str | None:
    wanted = _PATHS.get(run.data.kind)
    if wanted and not (run.data.path or "").strip():
        return f"data={run.data.kind} needs {wanted}"
    return None


def _path_is_read(run: Run) -> str | None:
    if run.data.path is not None and run.data.kind not in _PATHS:
        return f"data.kind={run.data.kind} does not read it"
    return None


def _dtype(run: Run) -> str | None:
    pairs = [(run.data.kind, run.data.dtype)]
    pairs += [(source.kind, source.dtype) for source in run.data.sources]
    for kind, dtype in pairs:
        largest = _DTYPE_LIMITS.get(dtype)
        if kind == "tokens" and largest and run.model.vocab_size > largest:
            return f"{dtype} cannot hold ids up to model.vocab_size={run.model.vocab_size}"
    return None


def _sources(run: Run) -> str | None:
    if run.data.kind == "mixture" and not run.data.sources:
        return "data=mixture needs the sources that it mixes"
    return None


def _sources_are_mixed(run: Run) -> str | None:
    if run.data.kind != "mixture" and run.data.sources:
        return f"data.kind={run.data.kind} reads no sources"
    return None


def _borders(run: Run) -> str | None:
    if run.data.packing != "documents":
        return None
    kinds = [run.data.kind, *(source.kind for source in run.data.sources)]
    if "tokens" in kinds:
        return "a bare file of token ids does not say where documents begin"
    return None


DATA_RULES = (
    Rule(
        id="tokens-need-path",
        field="data.path",
        says="data=store, data=megatron and data=tokens need data.path",
        why="There are no default files of token ids.",
        broken=_path,
        fix=lambda run: "data.path=/path/to/" + ("store" if run.data.kind == "store" else "tokens"),
    ),
    Rule(
        id="path-is-read",
        field="data.path",
        says="data.path is null where data.kind reads none",
        why="A path that is ignored means that the run trains on something else.",
        broken=_path_is_read,
        candidates=lambda run: (None,),
        fix="data.kind=store",
    ),
    Rule(
        id="mixture-has-sources",
        field="data.sources",
        says="data=mixture needs data.sources",
        why="There is no default text.",
        broken=_sources,
        fix="data.sources=[{kind:store,path:/path/to/store,weight:1.0}]",
    ),
    Rule(
        id="sources-are-mixed",
        field="data.sources",
        says="data.sources is empty unless data.kind is mixture",
        why="Sources that are ignored mean that the run trains on something else.",
        broken=_sources_are_mixed,
        fix="data.kind=mixture",
    ),
    Rule(
        id="documents-need-borders",
        field="data.packing",
        says="data.packing=documents needs data that knows where documents begin",
        why="A bare file of token ids has no borders; a token store and Megatron-LM's files do.",
        broken=_borders,
        candidates=lambda run: ("concatenate",),
    ),
    Rule(
        id="tokens-hold-vocabulary",
        field="data.dtype",
        says="data.dtype can hold every id of the vocabulary",
        why="A narrower type means that the file was written for another tokenizer.",
        broken=_dtype,
        candidates=lambda run: ("uint16", "uint32", "int32"),
    ),
)
