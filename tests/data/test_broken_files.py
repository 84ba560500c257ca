"""Files of others that are broken, or made to break what reads them: one clear sentence, soon, in little memory."""

import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats.diffusion_policy import DiffusionPolicyEpisodes
from data.opening import open_episodes
from tests.data.others import robomimic_file

REPO = Path(__file__).parents[2]


def replace(file, name, **options):
    value = options.pop("value", None)
    del file[name]
    file.create_dataset(name, data=value, **options)


BAD_FILES = {
    "no data": (lambda f: f.move("data", "dat"), "HDF5 file without the group data, only"),
    "no episodes": (lambda f: [f.__delitem__(f"data/demo_{i}") for i in range(3)], "group data holds no episodes"),
    "no actions": (lambda f: f.__delitem__("data/demo_1/actions"), "data/demo_1 has no actions, only"),
    "no obs": (lambda f: f.__delitem__("data/demo_0/obs"), "data/demo_0 has no group obs.*dataset_states_to_obs"),
    "missing key": (lambda f: f.__delitem__("data/demo_2/obs/object"), "data/demo_0 has 'object', data/demo_2 has not"),
    "other dtype": (
        lambda f: replace(f, "data/demo_1/obs/object", value=np.ones((12, 10))),
        r"data/demo_1/obs/object is \(12, 10\) float64, but data/demo_0/obs/object is \(7, 10\) float32",
    ),
    "other length": (
        lambda f: replace(f, "data/demo_1/obs/object", value=np.ones((11, 10), "f4")),
        r"data/demo_1/obs/object has shape \(11, 10\), but data/demo_1/actions has 12 steps",
    ),
    "text": (lambda f: replace(f, "data/demo_0/obs/object", value=[b"a"] * 7), "demo_0/obs/object is object, expect"),
    "wrong mask": (lambda f: replace(f, "mask/train", value=[b"demo_7"]), "mask/train names the episode 'demo_7'"),
    "env_args": (lambda f: f["data"].attrs.__setitem__("env_args", "{"), "attribute env_args of data is not a JSON"),
    "newer": (
        lambda f: f["data"].attrs.__setitem__("deft", json.dumps({"task": {}, "schema_version": 9})),
        "schema version 9; this Deft reads version 1",
    ),
    "bomb": (
        lambda f: replace(
            f, "data/demo_0/obs/agentview_image", shape=(7, 10**6, 10**5, 3), chunks=(1, 100, 100, 3), dtype="u1"
        ),
        r"agentview_image takes 0 bytes in the file, but claims to unpack to 2100\.0 GB",
    ),
    "chunk": (
        lambda f: replace(f, "data/demo_0/states", shape=(7, 10**9), chunks=(1, 4 * 10**8), dtype="f8"),
        "data/demo_0/states has chunks of 3.2 GB; expected 1 GB at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_wrong_file_is_refused(tmp_path, case):
    robomimic_file(tmp_path / "a.hdf5")
    damage, match = BAD_FILES[case]
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=match) as info:
        open_episodes(tmp_path / "a.hdf5")
    assert str(tmp_path / "a.hdf5") in str(info.value)
    assert "\n" not in str(info.value)


def test_a_file_that_is_cut_off(tmp_path):
    robomimic_file(tmp_path / "a.hdf5")
    whole = (tmp_path / "a.hdf5").read_bytes()
    for share in (0.0, 0.001, 0.3, 0.9, 0.9999):
        (tmp_path / "b.hdf5").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=r"b\.hdf5"):
            open_episodes(tmp_path / "b.hdf5")


FUZZ = """
import sys, random, resource
from pathlib import Path
from data.errors import DataError
from data.opening import open_episodes
from data.survey import survey
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
whole, path, ok = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), 0
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    print(seed, flush=True)
    rng, broken = random.Random(seed), bytearray(whole)
    for _ in range(rng.choice([1, 3, 30])):
        at = rng.randrange(len(broken))
        broken[at] = rng.randrange(256)
    path.write_bytes(broken)
    try:
        survey(open_episodes(path))
        ok += 1
    except DataError as e:
        assert str(path) in str(e), e
"""


@pytest.mark.parametrize("kind", ["a.hdf5", "a.zarr.zip"])
def test_changed_bytes(tmp_path, kind):
    """In a process of its own: what is tested is also that nothing crashes, hangs, or takes 3 GB."""
    from data.convert import main

    robomimic_file(tmp_path / "r.hdf5", compression="gzip")
    if kind == "a.hdf5":
        (tmp_path / "r.hdf5").rename(tmp_path / kind)
    else:
        main([str(tmp_path / "r.hdf5"), f"out={tmp_path / kind}"])
    command = [sys.executable, "-c", FUZZ, str(tmp_path / kind), str(tmp_path / f"b{Path(kind).suffix}"), "0", "25"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-20:] + done.stderr[-2000:]


# ------------------------------------------------------------------------------------ Diffusion Policy and UMI


def zipped(folder, path, changed=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            name = file.relative_to(folder).as_posix()
            z.writestr(name, (changed or {}).get(name, file.read_bytes()))
    return path


def replay_buffer(path, arrays, ends, compressor=None, chunk=4):
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, value in {**{f"data/{k}": v for k, v in arrays.items()}, "meta/episode_ends": np.array(ends)}.items():
        chunks = (chunk, *value.shape[1:])
        group.create_array(name, shape=value.shape, chunks=chunks, dtype=value.dtype, compressors=compressor)[:] = value


def umi(path):
    """UMI's layout: JPEG-XL pictures, poses, no actions."""
    imagecodecs = pytest.importorskip("imagecodecs")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 16, 16, 3)).astype("u1")
    arrays = {
        "camera0_rgb": images,
        "robot0_eef_pos": rng.normal(size=(9, 3)).astype("f4"),
        "robot0_eef_rot_axis_angle": rng.normal(size=(9, 3)).astype("f4"),
        "robot0_gripper_width": rng.uniform(size=(9, 1)).astype("f4"),
    }
    replay_buffer(path, arrays, [4, 9], numcodecs.Blosc(cname="zstd"), chunk=1)
    meta = json.loads((path / "data/camera0_rgb/.zarray").read_text())
    meta["compressor"] = {"id": "imagecodecs_jpegxl", "level": 99, "effort": None, "numthreads": 1, "whatever": 2}
    (path / "data/camera0_rgb/.zarray").write_text(json.dumps(meta))
    for i, image in enumerate(images):
        (path / f"data/camera0_rgb/{i}.0.0.0").write_bytes(imagecodecs.jpegxl_encode(image, lossless=True))
    return arrays


def test_umi(tmp_path, monkeypatch):
    arrays = umi(tmp_path / "u")
    path = zipped(tmp_path / "u", tmp_path / "replay_buffer.zarr.zip")
    assert open_episodes(path).task is None  # nothing is called action
    keys = ["robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width"]
    source = open_episodes(path, keys={"action": keys}, hz=20.0)
    assert source.task is not None
    np.testing.assert_array_equal(source.array("camera0_rgb")[:], arrays["camera0_rgb"])
    np.testing.assert_array_equal(source.array("action")[:], np.concatenate([arrays[k] for k in keys], 1))
    assert (source.task.action.shape, source.task.obs["camera0_rgb"].kind) == ((7,), "rgb")
    assert source.task.control_hz == 20
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(DataError, match=r"camera0_rgb.*JPEG-XL pictures need imagecodecs: pip install 'deft\[umi\]'"):
        open_episodes(path).array("camera0_rgb")[:]


def test_pusht(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 12, 12, 3)).astype("f4")
    replay_buffer(
        tmp_path / "p", {"img": images, "state": rng.normal(size=(9, 5)), "action": rng.uniform(0, 512, (9, 2))}, [4, 9]
    )
    source = open_episodes(tmp_path / "p")
    assert isinstance(source, DiffusionPolicyEpisodes)
    assert source.dtype("img") == np.uint8
    np.testing.assert_array_equal(source.array("img")[np.array([8, 1])], images[[8, 1]])
    assert source.task is not None
    assert source.task.obs["img"].kind == "rgb"
    assert source.task.action_low == source.array("action")[:].min()
    images[3, 0, 0, 0] = 0.5
    replay_buffer(tmp_path / "q", {"img": images, "action": rng.uniform(size=(9, 2))}, [9])
    with pytest.raises(DataError, match=r"data/img looks like pictures .* no whole numbers from 0 to 255"):
        open_episodes(tmp_path / "q").array("img")[:]


CODECS = {
    "none": None, "blosc": numcodecs.Blosc(), "zlib": numcodecs.Zlib(), "gzip": numcodecs.GZip(),
    "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA(), "zstd": numcodecs.Zstd(), "lz4": numcodecs.LZ4(),
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
def test_zip_bombs(tmp_path, codec):
    """A chunk that would unpack to far more than its array says is not unpacked."""
    replay_buffer(tmp_path / "p", {"state": np.ones((8, 3)), "action": np.ones((8, 2))}, [8], CODECS[codec])
    good = zipped(tmp_path / "p", tmp_path / "good.zip")
    np.testing.assert_array_equal(open_episodes(good).array("state")[:], 1)
    n = 64 << 20
    zeros = np.zeros(n, "u1")
    bomb = zeros.tobytes() if CODECS[codec] is None else bytes(CODECS[codec].encode(zeros))
    path = zipped(tmp_path / "p", tmp_path / "bomb.zip", {"data/state/1.0": bomb})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"data/state cannot be decoded in rows 4 to 7 \(chunk '1\.0'\)"):
        open_episodes(path).array("state")[:]
    if codec != "none":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_metadata_that_claims_too_much(tmp_path):
    replay_buffer(tmp_path / "p", {"state": np.ones((8, 3)), "action": np.ones((8, 2))}, [8])
    meta = json.loads((tmp_path / "p/data/state/.zarray").read_text())
    huge = json.dumps({**meta, "shape": [10**13, 3], "chunks": [10**12, 3]}).encode()
    with pytest.raises(DataError, match=r"data/state claims .* chunks of 24000.0 GB; expected 1 GB at most"):
        open_episodes(zipped(tmp_path / "p", tmp_path / "a.zip", {"data/state/.zarray": huge}))
    with pytest.raises(DataError, match=r"\.zattrs claims 20000000 bytes; metadata has kilobytes"):
        open_episodes(zipped(tmp_path / "p", tmp_path / "b.zip", {"data/.zattrs": b" " * 20_000_000}))
    other = json.dumps({**meta, "compressor": {"id": "newest_codec"}}).encode()
    with pytest.raises(DataError, match=r"data.*newest_codec"):
        open_episodes(zipped(tmp_path / "p", tmp_path / "c.zip", {"data/state/.zarray": other}))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(set(CODECS) - {"none"})), st.binary(max_size=80), st.integers(0, 200))
def test_codec_damage_never_raises(codec, junk, n):
    from data.zarr_codecs import HEAD, damage

    value = np.arange(n, dtype="u1")
    encoded = bytes(CODECS[codec].encode(value)) if n else b""
    if n:
        assert (
            damage(codec, encoded if codec in ("zlib", "gzip", "bz2", "lzma") else encoded[:HEAD], len(encoded), n)
            == ""
        )
    damage(codec, junk, len(junk), n)
