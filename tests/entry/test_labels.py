"""What is imitated of a disturbed expert."""

from __future__ import annotations

import numpy as np

from data.episodes import EpisodeStore
from launch.demos import imitated


def test_expert_labels_are_another_policy_from_the_same_demonstrations(server, toy, tmp_path):
    given = [*toy, f"data.root={tmp_path / 'data'}", "data.noise=0.3", "log.every=1"]
    first = {}
    for labels in ("executed", "expert"):
        server.train(*given, f"data.labels={labels}", f"run_dir={tmp_path / labels}")
        first[labels] = (tmp_path / labels / "metrics.jsonl").read_text().splitlines()[0]
    (store,) = (tmp_path / "data").glob("*noise0.3.zarr")  # one, collected once
    assert first["executed"] != first["expert"]
    store = EpisodeStore.open(store)
    executed, meant = (store.array(imitated(labels, store))[:] for labels in ("executed", "expert"))
    assert np.abs(executed - meant).mean() > 0.01
