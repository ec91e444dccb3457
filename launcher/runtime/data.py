"""Which samples a step sees: the same in every layout, by index arithmetic, nothing in memory."""

# Shapes: B samples of a microbatch, S tokens.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from launcher.config.schema import Run
from launcher.errors import ConfigError, Finding
from launcher.plan.records import Layout
from launcher.runtime.corpus import Tokens, open_corpus
from launcher.runtime.keys import hash_key
from launcher.runtime.model.context import ForwardContext
from launcher.runtime.pipeline.execute import Microbatch
from launcher.runtime.progress import Progress

CHECKED_TOKENS = 1 << 26
"""So many tokens are looked at before the first step; later ones when they are drawn."""
WORD = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """What a run reads."""

    train: TokenWindows
    validation: TokenWindows | None
    """None: nothing is validated."""


def open_datasets(
    run: Run, layout: Layout, folder: Path, writes: bool, barrier: Callable[[], None]
) -> Datasets:
    """Training and validation samples; see `open_corpus` for the last three arguments.

    Raises ConfigError where the text is too short or its ids do not fit the vocabulary.
    """
    corpus = open_corpus(run.data, folder, writes, barrier)
    has_validation = run.train.validation_batches > 0 and run.data.validation_fraction > 0
    length, seed, vocab_size = layout.sequence_length, run.train.seed, run.model.vocab_size
    findings = list(_check_length(corpus.train, length, "training", "train.sequence_length"))
    if has_validation:
        field = "data.validation_fraction"
        findings += _check_length(corpus.validation, length, "held-out", field)
    findings += _check_ids(corpus.train[:CHECKED_TOKENS], vocab_size)
    if findings:
        raise ConfigError(findings)
    train = TokenWindows(corpus.train, length, seed, vocab_size)
    if not has_validation:
        return Datasets(train=train, validation=None)
    seed = hash_key(seed, "validation")
    return Datasets(
        train=train, validation=TokenWindows(corpus.validation, length, seed, vocab_size)
    )


class TokenWindows:
    """Samples of sequence_length + 1 tokens, in a new order every epoch.

    Windows start every sequence_length tokens, so each token is a label once per epoch.
    """

    def __init__(self, tokens: Tokens, sequence_length: int, seed: int, vocab_size: int) -> None:
        self.tokens, self.sequence_length = tokens, sequence_length
        self.seed, self.vocab_size = seed, vocab_size
        self.num_windows = (len(tokens) - 1) // sequence_length
        """Samples per epoch."""
        assert self.num_windows > 0, "open_datasets refuses this"

    def window(self, sample: int) -> Tokens:
        """The tokens of a global sample, [S + 1]; samples never run out."""
        epoch, position = divmod(sample, self.num_windows)
        key = hash_key(self.seed, "epoch", epoch)
        start = permute(position, self.num_windows, key) * self.sequence_length
        return self.tokens[start : start + self.sequence_length + 1]

    def step_samples(
        self, progress: Progress, layout: Layout, dp_index: int, device: torch.device | None = None
    ) -> tuple[Microbatch, ...]:
        """The microbatches of one replica in one step.

        After C consumed samples a step reads the samples [C, C + G) in every layout
        (G = global_batch_size): first all microbatches of replica 0, then those of replica 1, and
        so on.
        """
        size, count = layout.micro_batch_size, layout.num_microbatches
        first = progress.consumed_samples + dp_index * count * size
        starts = range(first, first + count * size, size)
        return tuple(self._microbatch(start, size, progress.step, device) for start in starts)

    def _microbatch(
        self, first_sample: int, size: int, step: int, device: torch.device | None
    ) -> Microbatch:
        windows = [self.window(first_sample + offset) for offset in range(size)]
        samples = np.stack(windows).astype(np.int64)
        findings = _check_ids(samples, self.vocab_size)
        if findings:
            raise ConfigError(findings)
        window_BS1 = torch.from_numpy(samples)
        if device is not None and device.type == "cuda":
            window_BS1 = window_BS1.pin_memory().to(device, non_blocking=True)
        labels_BS = window_BS1[:, 1:]
        context = ForwardContext(labels_BS=labels_BS, step=step, first_sample=first_sample)
        return Microbatch(tokens_BS=window_BS1[:, :-1], context=context)


def permute(position: int, size: int, key: int) -> int:
    """Where a position goes in a permutation of range(size) that the key names.

    A Feistel network of four rounds permutes the next even power of two; what leaves the range is
    sent through again until it is inside ("cycle walking", Black and Rogaway 2002): at most four
    times on average.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for round_ in range(4):
            left, right = right, left ^ (_mix(right ^ (key + round_ * 0x9E3779B97F4A7C15)) & mask)
        position = left << half_bits | right
        if position < size:
            return position


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit depends on every bit."""
    value &= WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & WORD
    return value ^ value >> 31


def _check_length(tokens: Tokens, sequence_length: int, which: str, field: str) -> list[Finding]:
    if len(tokens) > sequence_length:
        return []
    reason = f"the {which} text has {len(tokens)} tokens, one sample needs {sequence_length + 1}"
    return [Finding(field=field, rule="data-long-enough", reason=reason)]


def _check_ids(tokens: Tokens, vocab_size: int) -> list[Finding]:
    if len(tokens) == 0:
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
