"""Which samples a step sees: the same in every layout, by index arithmetic, nothing in memory."""

# Shapes: B samples of a microbatch, S tokens.

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from launcher.config.data_files import vocabulary_findings
from launcher.config.schema import Run
from launcher.data.text import Text, split_text
from launcher.errors import ConfigError, Finding
from launcher.plan.records import Layout
from launcher.runtime.corpus import OpenText, open_texts
from launcher.runtime.keys import hash_key
from launcher.runtime.model.context import ForwardContext
from launcher.runtime.parallel.cross_entropy import IGNORED
from launcher.runtime.pipeline.execute import Microbatch
from launcher.runtime.progress import Progress
from launcher.runtime.windows import Mixture, Samples, TokenWindows, Windows

CHECKED_TOKENS = 1 << 20
"""So many tokens of a file without a known vocabulary are looked at before the first step; all
others when they are drawn."""


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """What a run reads."""

    train: Batches
    validation: Batches | None
    """None: nothing is validated."""


def open_datasets(
    run: Run, layout: Layout, folder: Path, writes: bool, barrier: Callable[[], None]
) -> Datasets:
    """Training and validation samples; see `open_texts` for the last three arguments.

    Raises ConfigError where the text is too short or its ids do not fit the vocabulary.
    """
    opened = open_texts(run.data, folder, writes, barrier)
    validates = run.train.validation_batches > 0 and run.data.validation_fraction > 0
    parts = [split_text(text.text, run.data.validation_fraction) for text in opened]
    length = layout.sequence_length
    findings = vocabulary_findings(run, [text.store for text in opened if text.store])
    for text, (training, held_out) in zip(opened, parts, strict=True):
        findings += _check_length(training, length, "training", text)
        if validates:
            findings += _check_length(held_out, length, "held-out", text)
        if text.store is None:
            findings += _check_ids(training.tokens[:CHECKED_TOKENS], run.model.vocab_size)
    if findings:
        raise ConfigError(findings)

    def build(texts: Sequence[Text], seed: int, prefetches: bool) -> Batches:
        samples = _build_samples(run, texts, [text.weight for text in opened], length, seed)
        return Batches(samples, run.model.vocab_size, prefetches)

    seed = run.train.seed
    train = build([training for training, _ in parts], seed, prefetches=True)
    if not validates:
        return Datasets(train=train, validation=None)
    held_out = [held_out for _, held_out in parts]
    validation = build(held_out, hash_key(seed, "validation"), prefetches=False)
    return Datasets(train=train, validation=validation)


class Batches:
    """Samples as the microbatches of one replica."""

    def __init__(self, samples: Samples, vocab_size: int, prefetches: bool = False) -> None:
        self.samples, self.vocab_size = samples, vocab_size
        self._thread = ThreadPoolExecutor(1, "data") if prefetches else None
        self._coming: tuple[Any, Future[_Step]] | None = None
        self._num_labels: dict[range, int] = {}

    def step_samples(
        self,
        progress: Progress,
        layout: Layout,
        dp_index: int,
        device: torch.device | None = None,
        num_steps: int = 1,
    ) -> tuple[Microbatch, ...]:
        """The microbatches of one replica in one step.

        After C consumed samples a step reads the samples [C, C + G) in every layout
        (G = global_batch_size): first all microbatches of replica 0, then those of replica 1, and
        so on. Where labels are left out, losses are scaled so that their mean over microbatches,
        replicas and `num_steps` steps (progress is in the first k of them: validation) is the mean
        over labels.
        """
        step = self._take(progress, layout, dp_index, device, num_steps)
        tokens, labels, documents = (_to_device(part, device) for part in step.parts())
        assert tokens is not None
        assert labels is not None
        size, count = layout.micro_batch_size, layout.num_microbatches
        first = _first_sample(progress, layout, dp_index)
        made = []
        for start in range(0, count * size, size):
            here = slice(start, start + size)
            context = ForwardContext(
                labels_BS=labels[here],
                step=progress.step,
                first_sample=first + start,
                documents_BS=None if documents is None else documents[here],
                num_labels=step.num_labels,
            )
            made.append(Microbatch(tokens_BS=tokens[here], context=context))
        return tuple(made)

    def _take(
        self, progress: Progress, layout: Layout, dp_index: int, device: Any, num_steps: int
    ) -> _Step:
        """The step, if possible read ahead; the next one is read while this one is computed."""
        pins = device is not None and device.type == "cuda"
        if self._thread is None:
            return self._read(progress, layout, dp_index, pins, num_steps)
        asked = (progress, layout, dp_index)
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == asked:
            step = coming[1].result()
        else:
            step = self._read(*asked, pins, num_steps)
        following = (progress.after(layout.global_batch_size), layout, dp_index)
        future = self._thread.submit(self._read, *following, pins, num_steps)
        self._coming = (following, future)
        return step

    def _read(
        self, progress: Progress, layout: Layout, dp_index: int, pins: bool, num_steps: int
    ) -> _Step:
        first = _first_sample(progress, layout, dp_index)
        mine = range(first, first + layout.micro_batch_size * layout.num_microbatches)
        windows = self.samples.read(np.arange(mine.start, mine.stop))
        findings = _check_ids(windows.tokens_NS1, self.vocab_size)
        if findings:
            raise ConfigError(findings)
        num_labels = None
        if windows.documents_NS1 is not None:
            size = layout.global_batch_size
            begin = progress.consumed_samples - (progress.step * size if num_steps > 1 else 0)
            scope = range(begin, begin + num_steps * size)
            num_microbatches = layout.num_microbatches * layout.dp * num_steps
            num_labels = self._count_labels(scope) / num_microbatches
        return _build_step(windows, num_labels, pins)

    def _count_labels(self, scope: range) -> int:
        if scope not in self._num_labels:
            self._num_labels = {scope: self.samples.count_labels(np.array(scope))}
        return self._num_labels[scope]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step of one replica, on the CPU."""

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None
    num_labels: float | None

    def parts(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.labels, self.documents


def _build_step(windows: Windows, num_labels: float | None, pins: bool) -> _Step:
    # Labels are made by numpy: torch would wake its threads, which the training step uses.
    labels_NS, documents = windows.tokens_NS1[:, 1:], None
    if windows.documents_NS1 is not None:
        documents_NS1 = windows.documents_NS1
        documents = torch.from_numpy(documents_NS1)[:, :-1]
        labels_NS = labels_NS.copy()
        labels_NS[documents_NS1[:, 1:] != documents_NS1[:, :-1]] = IGNORED
    tokens, labels = torch.from_numpy(windows.tokens_NS1)[:, :-1], torch.from_numpy(labels_NS)
    if pins:
        tokens, labels = tokens.contiguous().pin_memory(), labels.contiguous().pin_memory()
        documents = None if documents is None else documents.contiguous().pin_memory()
    return _Step(tokens=tokens, labels=labels, documents=documents, num_labels=num_labels)


def _to_device(part: Tensor | None, device: torch.device | None) -> Tensor | None:
    if part is None or device is None or device.type != "cuda":
        return part
    return part.to(device, non_blocking=True)


def _first_sample(progress: Progress, layout: Layout, dp_index: int) -> int:
    return progress.consumed_samples + dp_index * layout.num_microbatches * layout.micro_batch_size


def _build_samples(
    run: Run, texts: Sequence[Text], weights: Sequence[float], length: int, seed: int
) -> Samples:
    has_documents = run.data.packing == "documents"
    if run.data.kind != "mixture":
        return TokenWindows(texts[0], length, seed, has_documents)
    sources = [
        TokenWindows(text, length, hash_key(seed, "source", number), has_documents)
        for number, text in enumerate(texts)
    ]
    return Mixture(sources, weights)


def _check_length(text: Text, sequence_length: int, which: str, source: OpenText) -> list[Finding]:
    if len(text) > sequence_length:
        return []
    field = "train.sequence_length" if which == "training" else "data.validation_fraction"
    of = f" of {source.field}" if "sources" in source.field else ""
    reason = f"the {which} text{of} has {len(text)} tokens, one sample needs {sequence_length + 1}"
    return [Finding(field=field, rule="data-long-enough", reason=reason)]


def _check_ids(tokens: npt.NDArray[Any], vocab_size: int) -> list[Finding]:
    if tokens.size == 0:
        return []
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0:
        reason = f"the data has the token id {lowest}"
        return [Finding(field="data.dtype", rule="data-fits-vocabulary", reason=reason)]
    if highest < vocab_size:
        return []
    return [
        Finding(
            field="model.vocab_size",
            value=vocab_size,
            rule="data-fits-vocabulary",
            reason=f"the data has the token id {highest}",
            fix=f"model.vocab_size={highest + 1}",
        )
    ]
