"""Tests; mirrors launcher/."""
