"""Checks of data and of what it is made from; they belong to the table of rules."""

from __future__ import annotations

# Id, what it blames, what must hold, why.
DATA_CHECKS = (
    ("data-readable", "data.path", "the data can be read", "The job would fail after its start."),
    (
        "input-readable",
        "launch tokenize INPUT",
        "every input is there and something in it can be read",
        "A mistyped path must not make a smaller store.",
    ),
    (
        "tracker-installed",
        "train.tracker",
        "the tracker's package is installed, where the job uses the interpreter of `launch`",
        "The run would train without its curves.",
    ),
    (
        "extra-installed",
        "launch tokenize INPUT",
        "the library that reads the input is installed",
        "Parquet, saved data sets and .zst need the extra `data`.",
    ),
    (
        "output-free",
        "launch tokenize --output",
        "the folder of a new store is free",
        "A store that runs read must not change.",
    ),
    (
        "tokenizer-readable",
        "launch tokenize --tokenizer",
        "the tokenizer is `byte` or a tokenizer.json",
        "Its hash is recorded in the store.",
    ),
    (
        "end-token-known",
        "launch tokenize --end-token",
        "the tokenizer has a token that ends documents",
        "Without one neighbouring documents would run together.",
    ),
    (
        "tokenize-usage",
        "launch tokenize",
        "the command names inputs and an output, and its values are legal",
        "Nothing is guessed.",
    ),
    (
        "mixture-one-tokenizer",
        "data.sources",
        "the stores of a mixture were made with one tokenizer",
        "Another tokenizer's ids stand for other words.",
    ),
    (
        "data-fits-vocabulary",
        "data.path",
        "every token id is below model.vocab_size",
        "An id beyond the table has no embedding.",
    ),
    (
        "data-long-enough",
        "data.path",
        "there is at least one sample for training",
        "A shorter file yields no batch.",
    ),
)
