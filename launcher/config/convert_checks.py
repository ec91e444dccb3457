"""Checks of weights that come from elsewhere; they belong to the table of rules."""

from __future__ import annotations

# Id, what it blames, what must hold, why.
CONVERT_CHECKS = (
    (
        "convert-flag",
        "flags of convert",
        "the flag has a meaning for this source and this direction",
        "A flag must not be ignored.",
    ),
    (
        "convert-destination",
        "DST",
        "nothing is there yet, and it can be written",
        "A conversion never overwrites.",
    ),
    ("convert-disk-space", "DST", "the weights fit on the disk", "It would fail half-way."),
    (
        "weights-readable",
        "SRC, train.init_from",
        "a Hugging Face folder, a checkpoint that verifies, or a run that has one",
        "Weights that cannot be trusted are not used.",
    ),
    (
        "weights-fit-model",
        "SRC, train.init_from",
        "every tensor of the model is there, in its shape, and no other",
        "A tensor left at its random start would not be noticed for days.",
    ),
    (
        "hf-config-readable",
        "config.json",
        "it is a JSON object",
        "It says what the tensors mean.",
    ),
    (
        "hf-architecture",
        "config.json:architectures, model",
        "the class is one whose computation ours is known to equal",
        "Another class computes other logits from the same tensors.",
    ),
    (
        "hf-config-key",
        "keys of config.json",
        "every key that changes what is computed has a value that is computed here",
        "What would be ignored would change the logits in silence.",
    ),
    (
        "hf-weights-readable",
        "*.safetensors",
        "every weight file is there and whole; no pickles",
        "Loading a pickle runs the code in it.",
    ),
    (
        "hf-tensor",
        "names of tensors",
        "there, in the shape that config.json makes it, and known",
        "What nobody reads was meant for something.",
    ),
)
