"""Which model suits a machine, when the user names none."""

from __future__ import annotations

# Option under conf/model and its parameters, largest first; a test holds the counts.
LADDER = (
    ("llama3_405b", 405_853_388_800),
    ("llama3_70b", 70_553_706_496),
    ("llama3_8b", 8_030_261_248),
    ("gpt2_1.5b", 1_557_611_200),
    ("gpt2_124m", 124_439_808),
)
# bf16 weights 2, fp32 gradients 4, fp32 master weights and two Adam moments 12 (ZeRO, 1910.02054).
STATE_BYTES_PER_PARAMETER = 18
# The other half is left to activations, buffers and replicas.
STATE_SHARE = 0.5


def choose_model(device: str, memory_bytes: int) -> str:
    """The largest model of the ladder whose state fills at most half of all device memory.

    Args:
        device: cuda or cpu; a CPU trains the tiny model.
        memory_bytes: of all devices together.

    """
    if device == "cpu":
        return "tiny"
    for name, parameters in LADDER:
        if parameters * STATE_BYTES_PER_PARAMETER <= memory_bytes * STATE_SHARE:
            return name
    return "tiny"
