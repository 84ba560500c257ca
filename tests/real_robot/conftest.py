"""Most tests here run real processes against the real clock, and a starved machine is late: each may try again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from policies.checkpoint import save_policy
from tests.policies.conftest import config, make, make_store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two more tries; pytest's summary counts them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """To = 2, H = 8, Ta = 4; states (7,), actions (3,)."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    store = make_store(folder.with_name("demo.zarr"), ("state",))
    save_policy(folder, make(store, "flow", "mlp").eval(), config("flow", "mlp"))
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a file system of limited size")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
