"""Text to token ids: bytes as they are, or any tokenizer.json through the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from launcher.data.store_info import TokenizerInfo
from launcher.errors import ConfigError, Finding

BYTE = "byte"
"""Name of the built-in tokenizer."""
END_TOKENS = (
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "<|im_end|>",
    "[EOS]", "<|eot_id|>",
)  # fmt: skip
"""Looked for, in this order, where --end-token does not say which ends a document."""


class Tokenizer(Protocol):
    """Encodes documents without any special token around them."""

    info: TokenizerInfo

    def encode(self, documents: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Token ids of every document, its end token not included."""


def load_tokenizer(name: str, end_token: str | None = None) -> Tokenizer:
    """`byte`, or a tokenizer.json or the folder that has one.

    Raises ConfigError.
    """
    if name == BYTE:
        if end_token is not None:
            raise ConfigError([_unknown_end(end_token, ("256",))])
        return ByteTokenizer()
    path = tokenizer_file(name)
    if not path.is_file():
        reason = f"no file {path}" if path != Path(name) else "no such file, and not `byte`"
        raise ConfigError([_unusable(name, reason)])
    return JsonTokenizer(path, end_token)


def tokenizer_file(name: str) -> Path:
    """The file behind what was typed."""
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() else path


class ByteTokenizer:
    """A token per byte of UTF-8, and 256 for the end of a document."""

    def __init__(self) -> None:
        digest = hashlib.sha256(BYTE.encode()).hexdigest()
        self.info = TokenizerInfo(name=BYTE, sha256=digest, vocab_size=257, end_token=256)

    def encode(self, documents: Sequence[str]) -> list[npt.NDArray[Any]]:
        """See `Tokenizer`."""
        return [np.frombuffer(document.encode(), np.uint8) for document in documents]


class JsonTokenizer:
    """Hugging Face's file format for any kind of tokenizer."""

    def __init__(self, path: Path, end_token: str | None) -> None:
        import tokenizers

        content = path.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError([_unusable(str(path), f"not a tokenizer.json: {error}")]) from None
        # A file may carry its model's limits; a document here has none.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.info = TokenizerInfo(
            name=path.parent.name if path.name == "tokenizer.json" else path.name,
            sha256=hashlib.sha256(content).hexdigest(),
            vocab_size=max(ids.values()) + 1,  # ids may have holes
            end_token=_find_end(ids, end_token),
        )

    def encode(self, documents: Sequence[str]) -> list[npt.NDArray[Any]]:
        """See `Tokenizer`."""
        encoded = self._tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
        return [np.array(document.ids, np.uint32) for document in encoded]


def _find_end(ids: dict[str, int], wanted: str | None) -> int:
    for token in END_TOKENS if wanted is None else (wanted,):
        if token in ids:
            return ids[token]
    special = sorted(token for token in ids if token[:1] in "<[" and token[-1:] in ">]")
    raise ConfigError([_unknown_end(wanted, tuple(special[:20]))])


def _unknown_end(wanted: str | None, legal: tuple[str, ...]) -> Finding:
    reason = "the tokenizer has no such token" if wanted else "which token ends a document?"
    return Finding(
        field="--end-token", value=wanted, rule="end-token-known", reason=reason, legal=legal
    )


def _unusable(name: str, reason: str) -> Finding:
    return Finding(
        field="--tokenizer", value=name, rule="tokenizer-readable", reason=reason,
        fix="--tokenizer byte",
    )  # fmt: skip
