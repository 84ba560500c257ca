"""Checkpoints of other projects, read as configurations and weights of our own, and written."""
