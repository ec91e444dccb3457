"""What the workers execute: the only package that imports torch."""
