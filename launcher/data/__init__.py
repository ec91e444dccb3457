"""Token stores: how text becomes one, and how they and Megatron-LM's files are read."""
