"""Most tests here run real processes against the real clock, and a starved machine is late: each may try again."""

from __future__ import annotations

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
