"""Weights in and out: Hugging Face folders beside our own format, without torch."""
