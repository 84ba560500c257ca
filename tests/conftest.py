"""Shapes and types of every annotated function are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook(["data", "policies", "envs", "algos"], "beartype.beartype")
