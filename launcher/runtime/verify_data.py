"""Short documents for `launch verify`: every line of the text is one.

A file of the standard library is thousands of tokens long, a sample of the shrunk run 32: hardly
any would have the border of two documents in it.
"""

from __future__ import annotations

import numpy as np

from launcher.runtime.windows import Indices, Samples, Windows

NEWLINE = ord("\n")


class LineDocuments:
    """Samples of bytes whose documents end with their lines."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.sequence_length, self.per_epoch = samples.sequence_length, samples.per_epoch

    def read(self, samples: Indices) -> Windows:
        """The same tokens."""
        tokens_NS1 = self._samples.read(samples).tokens_NS1
        ends_NS1 = np.cumsum(tokens_NS1 == NEWLINE, axis=1, dtype=np.int32)
        documents_NS1 = np.zeros_like(ends_NS1)
        documents_NS1[:, 1:] = ends_NS1[:, :-1]  # the newline itself is its line's last token
        return Windows(tokens_NS1=tokens_NS1, documents_NS1=documents_NS1)

    def count_labels(self, samples: Indices) -> int:
        """How many of their labels lie in the same line as the token before."""
        documents_NS1 = self.read(samples).documents_NS1
        assert documents_NS1 is not None
        return int((documents_NS1[:, 1:] == documents_NS1[:, :-1]).sum())
