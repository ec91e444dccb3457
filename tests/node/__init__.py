"""Tests of what runs on the nodes."""
