"""Saving and loading the state of a training run (`launcher/checkpoint` is what lies on disk)."""
