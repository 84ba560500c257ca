"""LeRobot's data sets that are broken: one clear sentence that names file and key, soon, in little memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.formats import parquet_rows
from data.opening import open_episodes
from data.survey import survey
from tests.data.lerobot_files import CAMERAS, lerobot_folder, pictures, video

REPO = Path(__file__).parents[2]
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TOP = f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4"


def info(**changes):
    def change(root):
        path = root / "meta/info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def feature(name, **changes):
    def change(root):
        path = root / "meta/info.json"
        whole = json.loads(path.read_text())
        whole["features"][name].update(changes)
        path.write_text(json.dumps(whole))

    return change


def table(name, edit):
    def change(root):
        pq.write_table(edit(pq.read_table(root / name)), root / name)

    return change


def column(name, key, values):
    return table(name, lambda t: t.set_column(t.column_names.index(key), key, values))


def cut(name, share):
    def change(root):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: int(share * len(whole))])

    return change


def gone(name):
    return lambda root: (root / name).unlink()


BROKEN = {
    "version": (info(codebase_version="v1.6"), r"info\.json: codebase_version is 'v1\.6'; this Deft reads v2\.0, v2"),
    "newer": (info(codebase_version="v4.0"), r"codebase_version is 'v4\.0'"),
    "fps": (info(fps=0), r"info\.json: fps is 0"),
    "not JSON": (cut("meta/info.json", 0.5), r"info\.json is not JSON"),
    "half-copied": (info(total_episodes=9), r"total_episodes is 9, but the episodes listed in meta/ make 3"),
    "path": (info(data_path="../../etc/{chunk_index}"), "data_path leads out of the data set"),
    "pattern": (info(video_path="{video_key.__class__}"), r"video_path is '\{video_key\.__class__\}', expected"),
    "width": (info(data_path="data/{file_index:99999999d}"), "data_path is .*expected the pattern"),
    "slash": (info(features={"../x": {"dtype": "float32", "shape": [1]}}), r"feature '\.\./x' is"),
    "dtype": (feature("action", dtype="complex64"), r"'action' has an unknown dtype, 'complex64'"),
    "other dtype": (feature("action", dtype="int64"), r"column 'action' is float32; .* says int64"),
    "shape": (feature("action", shape=[3]), r"column 'action' holds \d+ values in row group 0, expected"),
    "huge": (feature("action", shape=[10**6, 10**6]), r"feature 'action' claims 1\.0e\+12 numbers a step"),
    "grey": (feature(CAMERAS[0], shape=[48, 64, 1]), r"pictures 'observation\.images\.top' are \(48, 64, 1\)"),
    "missing key": (table(DATA, lambda t: t.drop_columns(["action"])), r"file-000\.parquet has no column 'action'"),
    "cut parquet": (cut(DATA, 0.7), r"file-000\.parquet cannot be opened as parquet"),
    "cut episodes": (cut(EPISODES, 0.7), r"episodes/chunk-000/file-000\.parquet cannot be opened as parquet"),
    "fewer rows": (table(DATA, lambda t: t.slice(0, 17)), r"has 17 rows, but its episodes have 19 steps"),
    "gap": (column(DATA, "action", pa.array([None] * 19, pa.list_(pa.float32()))), "'action' (holds|has) .*19"),
    "lists": (
        column(DATA, "action", pa.array([[1.0, 2.0, 3.0], [1.0]] + [[1.0, 2.0]] * 17, pa.list_(pa.float32()))),
        r"column 'action' is list<.*>, not lists of 2",
    ),
    "order": (column(DATA, "episode_index", pa.array([0] * 12 + [1] * 7)), "'episode_index' says that episodes end"),
    "overlap": (column(EPISODES, "dataset_from_index", pa.array([0, 5, 19])), r"episode 1 is rows 5 to 19 .*ed 7"),
    "length": (column(EPISODES, "length", pa.array([7, -1, 5])), "expected episodes of one step and more"),
    "no tasks": (gone("meta/tasks.parquet"), r"tasks\.parquet cannot be opened"),
    "no video": (gone(TOP), r"observation\.images\.top/chunk-000/file-000\.mp4 is missing"),
}  # fmt: skip


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    lerobot_folder(tmp_path_factory.mktemp("lr") / "cubes")
    return tmp_path_factory.getbasetemp() / "lr0" / "cubes"


@pytest.fixture
def root(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cubes"))


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_data_set_is_refused(root, case):
    damage, match = BROKEN[case]
    damage(root)
    with pytest.raises(DataError, match=match) as found:
        open_episodes(root)
    assert str(root) in str(found.value)
    assert "\n" not in str(found.value)


VIDEOS = {
    "half-written": (cut(TOP, 0.6), r"file-000\.mp4 (cannot be (opened|decoded)|has no frame at)"),
    "empty": (cut(TOP, 0.0), r"file-000\.mp4 cannot be opened as a video"),
    "shorter": (lambda root: video(root / TOP, pictures(20, 0)), r"lasts 2\.00 s, .* at 2\.30"),
    "other size": (lambda root: video(root / TOP, pictures(24, 0, (64, 64))), "shows 64x64 pictures; .* says 64x48"),
    "other rate": (lambda root: video(root / TOP, pictures(24, 0), 7), r"file-000\.mp4 has no frame at 0\.100 s"),
    "no pictures": (lambda root: (root / TOP).write_bytes((root / DATA).read_bytes()), "cannot be opened as a video"),
}  # fmt: skip


@pytest.mark.parametrize("case", VIDEOS)
def test_a_wrong_video_is_found(root, case):
    damage, match = VIDEOS[case]
    damage(root)
    source = open_episodes(root)
    with pytest.raises(DataError, match=match) as told:
        source.array("rgb_top")[:]
    assert str(root) in str(told.value)
    found = survey(open_episodes(root)).problems
    assert found
    assert {p.kind for p in found} == {"unreadable"}


def test_a_column_that_claims_too_much(root, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_GROUP", 40)
    with pytest.raises(DataError, match=r"row group 0 claims .* GB and \d+ values in column 'length'; expected 1 GB"):
        open_episodes(root)


def test_pictures_in_parquet(tmp_path):
    from data.convert import convert
    from data.formats.lerobot_write import LeRobotOptions

    lerobot_folder(tmp_path / "cubes")
    convert(open_episodes(tmp_path / "cubes"), tmp_path / "x", "lerobot", lerobot=LeRobotOptions(pictures="png"))
    key = f"{CAMERAS[0]}"
    good = pq.read_table(tmp_path / "x" / DATA).column(key).to_pylist()
    np.testing.assert_array_equal(
        open_episodes(tmp_path / "x").array("rgb_top")[:], open_episodes(tmp_path / "cubes").array("rgb_top")[:]
    )
    for bad, match in (
        ({"bytes": good[3]["bytes"][:60], "path": None}, "picture 3 of column .* cannot be decoded"),
        ({"bytes": b"GIF89a" + bytes(99), "path": None}, "picture 3 of column .* cannot be decoded"),
        ({"bytes": None, "path": "frame-3.png"}, r"holds 23 pictures in row group 0, expected 24.*embed them"),
        ({"bytes": good[3]["bytes"][:18] + b"\x7f\xff" + good[3]["bytes"][20:], "path": None}, "picture 3 of column"),
    ):
        column(DATA, key, pa.array([*good[:3], bad, *good[4:]]))(tmp_path / "x")
        with pytest.raises(DataError, match=match):
            open_episodes(tmp_path / "x").array("rgb_top")[:]


def test_what_is_not_installed(root, monkeypatch):
    source = open_episodes(root)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"is a video; it needs PyAV: pip install 'deft\[lerobot\]'"):
        source.array("rgb_top")[0]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'deft\[lerobot\]'"):
        open_episodes(root)


FUZZ = """
import sys, random, resource
from pathlib import Path
from data.errors import DataError
from data.opening import open_episodes
from data.survey import survey
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
root, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
files = sorted(f for f in root.rglob("*") if f.is_file())
for seed in range(first, last):
    rng = random.Random(seed)
    path = files[seed % len(files)]
    whole = path.read_bytes()
    print(seed, path, flush=True)
    broken = bytearray(whole)
    for _ in range(rng.choice([1, 3, 30])):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    path.write_bytes(broken[: rng.choice([len(broken)] * 3 + [rng.randrange(len(broken))])])
    try:
        survey(open_episodes(root))
    except DataError as e:
        assert str(root) in str(e), e
    path.write_bytes(whole)
"""


def fuzz(root, first, last):
    command = [sys.executable, "-c", FUZZ, str(root), str(first), str(last)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]


def test_changed_bytes(root):
    """In a process of its own: what is tested is also that nothing crashes, hangs, or takes 4 GB."""
    fuzz(root, 0, 27)


@pytest.mark.slow
def test_many_changed_bytes(root):
    fuzz(root, 27, 800)
