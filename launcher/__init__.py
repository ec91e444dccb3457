"""Declarative launcher for distributed language-model training."""

__version__ = "0.1.0"
