"""python -m data.hub through huggingface_hub itself, against a small hub on this machine."""

import pytest

from data import hub as command
from data.errors import DataError
from data.opening import open_episodes
from tests.data.lerobot_files import lerobot_folder
from tests.data.others import robomimic_file
from tests.data.small_hub import running_hub
from tests.data.test_robomimic import check_same


def point_at(monkeypatch, url):
    """What HF_ENDPOINT does where huggingface_hub is imported."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        point_at(monkeypatch, hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # git LFS, then
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield hub


def test_there_and_back(hub, tmp_path, stored, capsys):
    robomimic_file(tmp_path / "lift.hdf5")
    lerobot_folder(tmp_path / "cubes")
    names = {stored: "store.zarr.zip", tmp_path / "lift.hdf5": "lift.hdf5", tmp_path / "cubes": ""}
    for i, (path, name) in enumerate(names.items()):
        assert command.main(["push", str(path), f"repo=me/set{i}"]) == 0
        assert capsys.readouterr().out == f"{hub.url}/datasets/me/set{i}\n"
        assert command.main(["pull", f"repo=me/set{i}", f"out={tmp_path / str(i)}"]) == 0
        got = tmp_path / str(i) / name
        assert capsys.readouterr().out == f"{got}\n"
        check_same(open_episodes(path), open_episodes(got)) if i < 2 else None
    there = open_episodes(tmp_path / "2")
    assert (there.format, there.n_steps) == ("lerobot", open_episodes(tmp_path / "cubes").n_steps)
    assert hub.tags == {"v3.0": "main"}
    assert {"store.zarr.zip", "lift.hdf5"} <= {k for f in hub.repos.values() for k in f}
    assert len(hub.large) >= 4
    assert not list(tmp_path.rglob(".cache"))


@pytest.mark.slow
def test_a_second_push_replaces_the_first(hub, tmp_path):
    lerobot_folder(tmp_path / "old", "v2.1")
    lerobot_folder(tmp_path / "new", "v2.1", lengths=(5, 6))
    for name in ("old", "new"):
        command.main(["push", str(tmp_path / name), "repo=me/x"])
    command.main(["pull", "repo=me/x", f"out={tmp_path / 'back'}"])
    files = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (tmp_path / "new", tmp_path / "back")]
    assert files[0] == files[1]


def test_what_goes_wrong(hub, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"me/none cannot be read: .*404.*Is the name right"):
        command.main(["pull", "repo=me/none", f"out={tmp_path / 'x'}"])
    with pytest.raises(DataError, match="No data set at"):
        command.main(["push", str(tmp_path / "nothing"), "repo=me/x"])
    assert hub.asked[-1][0] != "POST"
    hub.repos["me/notes"] = {"README.md": b"hello", "a.hdf5": b"no"}
    with pytest.raises(DataError, match=r"nothing there is a data set that Deft reads: .*README.md.*not an HDF5 file"):
        command.main(["pull", "repo=me/notes", f"out={tmp_path / 'y'}"])
    with pytest.raises(DataError, match="y exists already"):
        command.main(["pull", "repo=me/notes", f"out={tmp_path / 'y'}"])
    point_at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(DataError, match="me/x cannot be read"):
        command.main(["pull", "repo=me/x", f"out={tmp_path / 'z'}"])
