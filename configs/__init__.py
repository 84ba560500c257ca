"""Hydra configuration: groups of YAML files, and ``loader`` which composes them."""
