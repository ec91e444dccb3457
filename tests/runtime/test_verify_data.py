"""Documents of `launch verify`: short enough that samples hold several."""

from __future__ import annotations

import numpy as np

from launcher.plan.build import build_plan
from launcher.plan.shrink import shrink_run
from launcher.runtime.verify_data import LineDocuments
from launcher.runtime.windows import Indices, Windows
from tests.factory import make_run


class Text:
    """One sample."""

    sequence_length, per_epoch = 6, 1

    def read(self, samples: Indices) -> Windows:
        tokens = np.frombuffer(b"ab\n\ncd\n", np.uint8).astype(np.int64)
        return Windows(tokens_NS1=tokens[None].repeat(len(samples), 0), documents_NS1=None)

    def count_labels(self, samples: Indices) -> int:
        raise AssertionError


def test_a_line_ends_with_its_newline() -> None:
    samples = LineDocuments(Text())
    assert samples.read(np.array([0])).documents_NS1.tolist() == [[0, 0, 0, 1, 2, 2, 2]]
    assert samples.count_labels(np.array([0, 0])) == 2 * 4


def test_a_shrunk_run_keeps_documents_apart() -> None:
    for packing in ("documents", "concatenate"):
        plan = build_plan(make_run(**{"data.packing": packing}))
        assert shrink_run(plan.run, plan.layout).data.packing == packing
