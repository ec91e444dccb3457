"""Checkpoints on disk, without torch: what they hold, how they are read, checked and published."""
