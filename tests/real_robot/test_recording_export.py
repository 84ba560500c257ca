"""From recordings to data: everything at the times that the rule says; and the command that looks after recordings."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.spec import FieldSpec
from real_robot import episodes as command
from real_robot.core.actions import ActionSpace
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Button
from real_robot.recorder import folder as folders
from real_robot.recorder.episode import Episode, sent
from real_robot.recorder.export import export, film
from real_robot.recorder.resample import decision_times, interpolate, newest, too_old
from real_robot.recorder.sampling import Rule, sample, task_of
from tests.real_robot.recording import ROBOT, Filled, H, N, W, picture, q_at, recorder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Episodes of 2.5 s: 0 success, 1 without label, 2 failure, 3 discarded, 4 truncated."""
    out = tmp_path_factory.mktemp("recording")
    session = Session()
    rings = Filled(session, depth=True)
    for label in (Button.SUCCESS, Button.NONE, Button.FAILURE, Button.DISCARD):
        r = recorder(session, out)
        for button, at in ((Button.START, 0.5), (Button.STOP | label, 3.0)):
            rings.press(button, at)
            r.step()
            r._looked = 0.0
        r.step()
        r.close()
    rings.press(Button.START, 0.5)
    r = recorder(session, out)
    r.step()
    r.close()
    session.close()
    return out


def seconds(episode: Episode, hz: float, n: int) -> np.ndarray:
    """Decision times on the axis of ``q_at``; START is at 0.5."""
    return 0.5 + np.arange(n) / hz


@pytest.mark.parametrize("hz", [5.0, 10.0, 7.0])
def test_everything_is_where_the_rule_says(recording, hz):
    episode = Episode(folders.find(recording, 0))
    rows = sample(episode, Rule(hz=hz, space="absolute", depth=True, velocity=True))
    n = len(rows["action"])
    t = seconds(episode, hz, n)
    assert n == int(2.5 * hz)
    np.testing.assert_allclose(rows["agent_pos"][:, :N], q_at(t), atol=2e-4)  # between samples of 100 Hz
    sent_at = np.floor((t + 1 / hz) * 100 + 1e-4) / 100
    np.testing.assert_allclose(rows["action"], q_at(sent_at) + 0.05, atol=1e-5)
    shown = np.floor(t * 20 + 1e-4).astype(int)
    assert np.array_equal(rows["rgb_front"][:, 0, 0, 0], shown)
    np.testing.assert_allclose(rows["depth_front"][:, 0, 0], 0.001 * shown, atol=1e-6)
    human = (sent_at >= 1) & (sent_at < 2)
    assert np.array_equal(rows["source"], np.where(human, 2, 1))
    assert np.array_equal(rows["proposed"], human)
    expected = np.where(human[:, None], q_at(sent_at) - 0.1, q_at(sent_at) + 0.05)
    np.testing.assert_allclose(rows["proposal"], expected, atol=1e-5)
    assert all(np.isfinite(v).all() for v in rows.values())
    assert rows["success"].sum() == rows["success"][-1] == 1


@pytest.mark.parametrize(("action", "offset"), [("target", 0.1), ("teleop", 0.2), ("measured", 0.0)])
def test_other_actions(recording, action, offset):
    rows = sample(Episode(folders.find(recording, 1)), Rule(hz=10, action=action, space="absolute"))
    np.testing.assert_allclose(rows["action"], q_at(0.6 + np.arange(25) / 10) + offset, atol=2e-4)
    assert not rows["success"].any()


def test_steps_lead_from_what_was_sent_to_what_was_sent(recording):
    episode = Episode(folders.find(recording, 0))
    far, steps = (sample(episode, Rule(hz=10, space=space)) for space in ("absolute", "delta"))
    assert np.abs(steps["action"]).max() <= 1
    space = ActionSpace.from_dict(task_of(episode, Rule(hz=10)).env_args["actions"])
    np.testing.assert_allclose(space.decode(steps["action"], q_at(0.5) + 0.05), far["action"], atol=1e-5)
    proposal = steps["proposed"] & (np.abs(steps["proposal"]) < 1).all(1)
    assert proposal.any()
    before = np.concatenate([q_at([0.5]) + 0.05, far["action"][:-1]])
    found = np.concatenate([space.decode(p[None], b) for p, b in zip(steps["proposal"], before, strict=True)])
    np.testing.assert_allclose(found[proposal], far["proposal"][proposal], atol=1e-5)


def test_steps_need_to_know_the_fastest(recording):
    episode = Episode(folders.find(recording, 0))
    del episode.meta["info"]["robot"]["velocity"]
    with pytest.raises(DataError, match="space=absolute"):
        sample(episode, Rule())
    with pytest.raises(ConfigError, match="space=absolute"):
        Rule(action="teleop")


@given(st.integers(0, 2**32 - 1), st.sampled_from(["delta", "absolute"]))
def test_action_spaces_go_there_and_back(seed, kind):
    rng = np.random.default_rng(seed)
    space = ActionSpace(kind, 10.0, [1.0, 2.0, 3.0], [-1.0, -2.0, 0.0], [1.0, 2.0, 1.0], True)
    start = rng.uniform(space.lower, space.upper)
    targets = [start]
    for _ in range(8):
        step = rng.uniform(-1, 1, 3) * space.velocity / space.hz
        targets.append(np.clip(targets[-1] + step, space.lower, space.upper))
    path = np.array(targets)
    actions = space.encode(path[1:], path[:-1])
    assert actions.min() >= space.low
    assert actions.max() <= space.high
    np.testing.assert_allclose(space.decode(actions, start), path[1:], atol=1e-12)
    assert ActionSpace.from_dict(json.loads(json.dumps(space.to_dict()))).to_dict() == space.to_dict()
    for nonsense in (np.nan, np.inf):
        assert not np.isfinite(space.decode(np.full((2, 3), nonsense), start)).any()
    wild = space.decode(rng.normal(0, 5, (9, 3)), start) if kind == "delta" else start[None]
    assert ((wild >= space.lower) & (wild <= space.upper)).all()


def test_the_task_is_that_of_the_streams(recording):
    episode = Episode(folders.find(recording, 0))
    task = task_of(episode, Rule(size=(12, 12), crop="square"))
    assert task.obs == {
        "rgb_front": FieldSpec((12, 12, 3), "uint8", "rgb"),
        "agent_pos": FieldSpec((N,), "float32", "state"),
    }
    assert (task.name, task.control_hz, task.action_low, task.action_high) == ("wave", 10.0, -1.0, 1.0)
    assert task.env_args["action_names"] == ROBOT["joints"]
    absolute = task_of(episode, Rule(space="absolute"))
    assert (absolute.action_low, absolute.action_high) == (-3.0, 3.0)
    assert task.env_args["suite"] == "real"
    assert task.env_args["robot"] == ROBOT


def test_export_takes_up_where_it_stopped(recording, tmp_path):
    rule, path, seen = Rule(hz=10, size=(8, 8)), tmp_path / "set.zarr", []
    report = export(recording, path, rule, include=["success"], progress=lambda *x: seen.append(x))
    assert report.added == [0]
    assert report.left_out == {1: "unlabelled", 2: "failure", 4: "truncated"}
    assert seen[-1] == (4, 4)
    report = export(recording, path, rule)
    assert (report.added, report.before) == ([1], [0])
    assert export(recording, path, rule).added == []
    report = export(recording, path, rule, include=["failure", "truncated", "unlabelled"])
    assert (report.added, report.changed) == ([2, 4], [0])
    store = EpisodeStore.open(path)
    assert store.episode_meta("recording").tolist() == [0, 1, 2, 4]
    assert store.episode_meta("success").tolist() == [1, -1, 0, -1]
    assert store.episode_meta("seconds")[0] == 2.5
    lengths = np.diff(store.episode_ends, prepend=0)
    assert lengths[:3].tolist() == [25, 25, 25]
    assert 30 <= lengths[3] <= 35  # until the last stream ends
    assert np.array_equal(store.episode(0)["rgb_front"][0], picture(10)[:8, :8])
    with pytest.raises(DataError, match=r"another rule .*hz: 10"):
        export(recording, path, Rule(hz=5, size=(8, 8)))
    with pytest.raises(DataError, match="no finished episode"):
        export(tmp_path, tmp_path / "other", rule)
    with pytest.raises(ConfigError, match="success"):
        export(recording, path, rule, include=["sucess"])


class Cloud:
    """As a point cloud would be made."""

    fields = {"pointcloud": FieldSpec((4, 3), "float32", "pointcloud")}  # noqa: RUF012

    def __call__(self, moment):
        assert moment.rgb["front"].shape == (H, W, 3)
        points = np.full((4, 3), moment.depth["front"].mean(), np.float32)
        points[0] = moment.q
        points[1] = moment.info["cameras"]["front"]["fx"]
        return {"pointcloud": points}


def test_a_hook_sees_whole_pictures_and_intrinsics(recording, tmp_path):
    export(recording, tmp_path / "set.zarr", Rule(hz=10, size=(8, 8)), hook=Cloud())
    store = EpisodeStore.open(tmp_path / "set.zarr")
    assert set(store.task.obs) == {"rgb_front", "agent_pos", "pointcloud"}
    cloud = store.episode(0)["pointcloud"]
    np.testing.assert_allclose(cloud[:, 2, 0], 0.001 * (10 + 2 * np.arange(25)), atol=1e-6)
    np.testing.assert_allclose(cloud[:, 0], q_at(0.5 + np.arange(25) / 10), atol=2e-4)
    assert (cloud[:, 1] == 30).all()


def _record(tmp_path, change):
    session = Session()
    rings = Filled(session)
    change(rings)
    r = recorder(session, tmp_path / "out")
    for button, at in ((Button.START, 0.5), (Button.STOP, 5.0)):
        rings.press(button, at)
        r._looked = 0.0
        r.step()
    r.close()
    session.close()
    return tmp_path / "out"


def test_a_gap_leaves_the_episode_out_and_says_where(tmp_path):
    def change(rings):
        for i in range(401, 501):
            rings.tick(i, 100)
        rings.camera.put((99, picture(3)), rings.at(4.5))  # nothing between 3.95 s and here

    out = _record(tmp_path, change)
    report = export(out, tmp_path / "set.zarr", Rule(hz=10))
    assert "nothing new from 'camera.front' for more than 0.1 s, 3.60 s after START" in report.left_out[0]
    assert not (tmp_path / "set.zarr").exists()
    assert export(out, tmp_path / "set.zarr", Rule(hz=10, max_image_age=0.6)).added == [0]


def test_steps_in_which_nobody_leads_are_trimmed(tmp_path):
    def change(rings):
        for i in range(400, 501):
            t = i / 100
            nan = np.full(N, np.nan)
            rings.state.put((t, q_at(t), q_at(t), nan, 0), rings.at(t))
            rings.command.put((q_at(t), q_at(t), nan, 0, 1, 0, -1, 0.0, 0), rings.at(t))
            if i % 5 == 0:
                rings.camera.put((i, picture(i)), rings.at(t))

    out = _record(tmp_path, change)
    episode = Episode(folders.find(out, 0))
    assert len(sample(episode, Rule(trim=False))["action"]) == 45
    rows = sample(episode, Rule())
    assert len(rows["action"]) == 34
    assert rows["source"].all()


def test_a_damaged_log_is_not_exported(tmp_path):
    out = _record(tmp_path, lambda rings: None)
    log = folders.find(out, 0) / "log"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    assert "damaged after byte" in export(out, tmp_path / "set.zarr", Rule()).left_out[0]


def test_sent_is_what_was_sent(recording):
    t, q = zip(*sent(folders.find(recording, 0)), strict=True)
    assert len(t) == 251
    np.testing.assert_allclose(np.array(q), q_at(0.5 + np.array(t) / 1e9) + 0.05, atol=1e-12)
    assert (t[0], t[-1]) == (0, 2.5 * SECOND)


def test_a_film(recording, tmp_path):
    import imageio_ffmpeg

    path = film(folders.find(recording, 0), tmp_path / "a.mp4", fps=10, height=48)
    frames, length = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 25
    assert length == pytest.approx(2.5, abs=0.2)
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (64, 48)
    with pytest.raises(DataError, match=r"\.mp4"):
        film(folders.find(recording, 0), tmp_path / "a.avi")


times = st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True).map(sorted)


@given(t=times, at=st.lists(st.integers(-10, 1100), min_size=1, max_size=20))
@settings(deadline=None)
def test_resampling(t, at):
    t, at = np.array(t), np.array(at)
    index = newest(t, at)
    for k, i in zip(at, index, strict=True):
        assert (i == -1) if k < t[0] else t[i] <= k < (t[i + 1] if i + 1 < len(t) else np.inf)
    old = too_old(t, at, 50 / SECOND)
    assert np.array_equal(old, [i < 0 or k - t[i] > 50 for k, i in zip(at, index, strict=True)])
    line = interpolate(t, 3.0 * t[:, None] + 1, at)
    np.testing.assert_allclose(line[:, 0], 3.0 * np.clip(at, t[0], t[-1]) + 1, rtol=1e-12)


def test_decision_times():
    assert decision_times(5, 5 + SECOND, 10).tolist() == [5 + k * SECOND // 10 for k in range(10)]
    assert len(decision_times(0, SECOND // 10 - 10**6, 10)) == 0


# ------------------------------------------------------------------------------------------------------ the command


def test_the_command(recording, tmp_path, capsys):
    def says(*words) -> str:
        assert command.main([str(w) for w in words]) == 0
        return capsys.readouterr().out

    assert "export DIR" in says("--help")
    lines = says("list", recording).splitlines()
    assert lines[0].split()[:4] == ["episode", "date", "s", "label"]
    assert [line.split()[3:5] for line in lines[1:4]] == [["2.5", "success"], ["2.5", "unlabelled"], ["2.5", "failure"]]
    assert "state 100" in lines[1]
    assert "3 (discarded)" in lines[5]
    says("label", recording, "failure", "0-1")
    assert [folders.group(folders.read_meta(folders.find(recording, n))) for n in (0, 1)] == ["failure"] * 2
    says("label", recording, "none", 1)
    says("label", recording, "success", 0)
    assert "discarded" in says("discard", recording, 2)
    says("restore", recording, 2)
    assert folders.read_meta(folders.find(recording, 2))["label"] == "failure"
    said = says("export", recording, f"out={tmp_path}/set.zarr", "hz=5", "size=[8,8]", "include=[success]")
    assert "1 episodes added" in said
    assert "left out: 2: failure" in said
    assert EpisodeStore.open(tmp_path / "set.zarr").shape("rgb_front") == (8, 8, 3)
    first = says("replay", recording, 0).splitlines()[0].split(",")
    np.testing.assert_allclose([float(x) for x in first], [0, *(q_at(0.5) + 0.05)], atol=1e-6)
    assert says("video", recording, 0, f"out={tmp_path}", "height=48").strip() == f"{tmp_path}/episode_0000.mp4"
    assert "recorder  recording episode_0000" in says("events", recording, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst", "D"], "Did you mean 'list'"),
        (["list", "nowhere"], "no folder nowhere"),
        (["list", "D", "x"], "not of the form key=value"),
        (["label", "D", "good", "1"], "success, failure or none"),
        (["label", "D", "success", "99"], "no episode 99: there are 0 to"),
        (["discard", "D"], "Give its number"),
        (["discard", "D", "one"], "not the number"),
        (["export", "D"], "out=DATASET"),
        (["export", "D", "out=x", "hzz=3"], "Did you mean 'hz'"),
        (["export", "D", "out=x", "hz=fast"], "must be of type float"),
        (["export", "D", "out=x", "action=send"], "Did you mean 'sent'"),
        (["export", "D", "out=x", "size=96"], r"size=\[96, 96\]"),
        (["restore", "D", "0"], "discarded has no episode 0"),
    ],
)
def test_the_command_says_what_is_wrong(recording, words, message, capsys):
    assert command.main([str(recording) if w == "D" else w for w in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
