"""Samples as windows of one text or of several that are mixed, by number, nothing in memory."""

# Shapes: N samples, S tokens of a sample.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from launcher.data.text import Text, resident_file_bytes
from launcher.runtime.keys import hash_key
from launcher.runtime.order import Indices, build_mixture, permute

FORGET_AFTER = 1 << 26
"""Bytes of files that become resident before they are taken out of the process again."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Some samples, read."""

    tokens_NS1: npt.NDArray[np.int64]
    """Sequence length + 1 tokens each."""
    documents_NS1: npt.NDArray[np.int32] | None
    """Which document of its window a token belongs to, counted from 0; None: nobody asked."""


class Samples(Protocol):
    """Numbered samples that never run out."""

    sequence_length: int
    per_epoch: int
    """After so many every token was a label once, give or take the last ones of a text."""

    def read(self, samples: Indices) -> Windows:
        """The samples of these numbers, in this order."""

    def count_labels(self, samples: Indices) -> int:
        """How many of their labels lie in the same document as the token before."""


class TokenWindows:
    """Samples of one text, in a new order every epoch.

    Windows start every sequence_length tokens, so each token is a label once per epoch.
    """

    def __init__(
        self, text: Text, sequence_length: int, seed: int, has_documents: bool = False
    ) -> None:
        self.text, self.sequence_length, self.seed = text, sequence_length, seed
        self.has_documents = has_documents
        self.per_epoch = (len(text) - 1) // sequence_length
        assert self.per_epoch > 0, "open_datasets refuses this"
        self._resident = resident_file_bytes()

    def starts(self, samples: Indices) -> Indices:
        """The first token of every sample."""
        epochs, positions = np.divmod(samples, self.per_epoch)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = hash_key(self.seed, "epoch", int(epoch))
            starts[here] = permute(positions[here], self.per_epoch, key)
        return starts * self.sequence_length

    def read(self, samples: Indices) -> Windows:
        """See `Samples`."""
        width = self.sequence_length + 1
        tokens_NS1 = np.empty((len(samples), width), np.int64)
        documents_NS1 = np.zeros(tokens_NS1.shape, np.int32) if self.has_documents else None
        for row, start in enumerate(self.starts(samples)):
            first = self.text.start + int(start)
            tokens_NS1[row] = self.text.tokens[first : first + width]
            if documents_NS1 is not None:
                borders = self.text.borders_between(int(start), int(start) + width)
                documents_NS1[row, borders - start] = 1
        if documents_NS1 is not None:
            np.cumsum(documents_NS1, axis=1, out=documents_NS1)
        self._forget_pages()
        return Windows(tokens_NS1=tokens_NS1, documents_NS1=documents_NS1)

    def count_labels(self, samples: Indices) -> int:
        """See `Samples`."""
        count = len(samples) * self.sequence_length
        if not self.has_documents:
            return count
        for start in self.starts(samples):
            last = int(start) + self.sequence_length + 1
            count -= len(self.text.borders_between(int(start), last))
        self._forget_pages()
        return count

    def _forget_pages(self) -> None:
        """Keep what is resident of the maps small; measured, for systems map from 4 KiB to 2 MiB
        around a page that is touched.
        """
        if resident_file_bytes() - self._resident > FORGET_AFTER:
            self.text.forget_pages()
            self._resident = resident_file_bytes()


class Mixture:
    """Samples of several sources by weight: any first n have the right proportions."""

    def __init__(self, sources: Sequence[Samples], weights: Sequence[float]) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)
        self.sequence_length = sources[0].sequence_length
        self._tree = build_mixture(weights)
        # The epoch of a mixture ends when the last of its sources has been read once.
        shares = [weight / sum(weights) for weight in weights]
        self.per_epoch = max(
            round(source.per_epoch / share) for source, share in zip(sources, shares, strict=True)
        )

    def deal(self, samples: Indices) -> tuple[Indices, Indices]:
        """Source of every sample, and its number within the source."""
        if isinstance(self._tree, int):
            return np.zeros_like(samples), samples
        return self._tree.deal(samples)

    def read(self, samples: Indices) -> Windows:
        """See `Samples`."""
        parts = [(here, source.read(places)) for here, source, places in self._by_source(samples)]
        shape = (len(samples), self.sequence_length + 1)
        tokens_NS1 = np.empty(shape, np.int64)
        has_documents = any(part.documents_NS1 is not None for _, part in parts)
        documents_NS1 = np.empty(shape, np.int32) if has_documents else None
        for here, part in parts:
            tokens_NS1[here] = part.tokens_NS1
            if documents_NS1 is not None:
                documents_NS1[here] = part.documents_NS1
        return Windows(tokens_NS1=tokens_NS1, documents_NS1=documents_NS1)

    def count_labels(self, samples: Indices) -> int:
        """See `Samples`."""
        return sum(source.count_labels(places) for _, source, places in self._by_source(samples))

    def _by_source(self, samples: Indices) -> list[tuple[Any, Samples, Indices]]:
        """Which of the samples are a source's, the source, and their numbers within it."""
        sources, places = self.deal(samples)
        return [
            (sources == number, self.sources[number], places[sources == number])
            for number in np.unique(sources)
        ]
