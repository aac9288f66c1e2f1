"""Checkpoints: the format, writing and reading them, and pretrained weights."""
