from __future__ import annotations

import pytest

from tests.entry import commands


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    yield from commands.serve(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """data.root: demonstrations are collected once."""
    return tmp_path_factory.mktemp("data_root")


@pytest.fixture(scope="session")
def toy(root):
    """Overrides of a run of a second."""
    return [*commands.TOY, f"data.root={root}"]


@pytest.fixture(scope="session")
def straight(server, toy, tmp_path_factory):
    """A small finished run."""
    run = tmp_path_factory.mktemp("straight") / "run"
    server.train(*toy, "eval.every=20", "eval.every_n_episodes=2", f"run_dir={run}")
    return run
