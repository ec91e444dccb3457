"""Which keys of other ranks a rank's queries see under the zig-zag cut, and through what mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.runtime.parallel.block_attention import (
    HIDDEN,
    Part,
    PartGradients,
    attend,
    attend_backward,
)
from launcher.runtime.parallel.sequence_cut import SequenceCut


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Some of a rank's queries, and keys of which each sees at least some."""

    rows: slice
    """Of the rank's queries."""
    keys: slice
    """Of the keys at hand."""
    chunks: tuple[int, ...]
    """Which chunks of the sequence those keys are, in their order."""
    is_causal: bool = False
    """The same tokens on both sides: each query sees the keys up to its own."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that one rank's queries meet, and how to compute one meeting.

    Rank i of n has the chunks i and 2n - 1 - i; of others it sees 2n - 1 chunk pairs whatever i.
    """

    cut: SequenceCut
    window: int | None
    """Keys further back are not seen."""
    documents_BS: Tensor | None
    """Keys of other documents are not seen; None: there is one document."""

    def own(self) -> Meeting:
        """With the rank's own keys: both chunks in their order, so plainly causal."""
        both = self._slice(0, 2)
        return Meeting(rows=both, keys=both, chunks=self.cut.chunks, is_causal=True)

    def with_rank(self, source: int) -> list[Meeting]:
        """With the keys of another rank, as they lie there.

        Of an earlier rank (one chunk before both of ours, one behind both) all queries see the
        first; of a later rank our second chunk sees both, our first none.
        """
        chunks = (source, self.cut.num_chunks - 1 - source)
        if source < self.cut.axis.index:
            meeting = Meeting(rows=self._slice(0, 2), keys=self._slice(0, 1), chunks=chunks[:1])
        else:
            meeting = Meeting(rows=self._slice(1, 2), keys=self._slice(0, 2), chunks=chunks)
        return self._seen([meeting])

    def forward(self, meeting: Meeting, q: Tensor, k: Tensor, v: Tensor) -> Part:
        """Attention of the meeting's rows to its keys."""
        rows, keys = meeting.rows, meeting.keys
        mask = self._mask(meeting, q.dtype)
        is_causal = meeting.is_causal and mask is None
        return attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], is_causal, mask)

    def backward(
        self, meeting: Meeting, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, whole: Part
    ) -> PartGradients:
        """What the meeting adds to the gradients of its rows and of its keys."""
        rows, keys = meeting.rows, meeting.keys
        mask = self._mask(meeting, q.dtype)
        return attend_backward(
            grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys],
            Part(whole.out_BNQD[:, :, rows], whole.log_sum_BNQ[:, :, rows].contiguous()),
            meeting.is_causal and mask is None, mask,
        )  # fmt: skip

    @property
    def _step(self) -> int:
        """Tokens of a chunk."""
        return self.cut.length // self.cut.num_chunks

    def _slice(self, start: int, stop: int) -> slice:
        """Tokens of neighbouring chunks."""
        return slice(start * self._step, stop * self._step)

    def _seen(self, meetings: Iterable[Meeting]) -> list[Meeting]:
        """Those in which some key is within the window."""
        return [meeting for meeting in meetings if self._is_near(meeting)]

    def _is_near(self, meeting: Meeting) -> bool:
        if self.window is None:
            return True
        asking = self.cut.chunks[meeting.rows.start // self._step :]
        gaps = [chunk - seen for chunk in asking for seen in meeting.chunks if seen < chunk]
        # The first query of a chunk is one token behind the last key of the chunk before it.
        return (min(gaps) - 1) * self._step + 1 < self.window

    def _mask(self, meeting: Meeting, dtype: torch.dtype) -> Tensor | None:
        """Added to the scores; None: all keys are seen, or those up to the query's own."""
        if self.window is None and self.documents_BS is None:
            return None
        rows = self.cut.places_s[meeting.rows]
        inside = torch.arange(self._step, device=rows.device)
        keys = torch.cat([chunk * self._step + inside for chunk in meeting.chunks])
        seen = rows.unsqueeze(1) >= keys
        if self.window is not None:
            seen &= rows.unsqueeze(1) < keys + self.window
        seen = seen[None, None]
        if self.documents_BS is not None:
            asking, asked = self.documents_BS[:, rows], self.documents_BS[:, keys]
            seen = seen & (asking.unsqueeze(2) == asked.unsqueeze(1)).unsqueeze(1)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, HIDDEN)
