"""Lens and place of a camera are found from rendered boards; delays from irregular, noisy samples."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, DataError
from real_robot.calibration.board import Board
from real_robot.calibration.handeye import calibrate_extrinsics
from real_robot.calibration.intrinsics import calibrate_intrinsics, locate
from real_robot.calibration.latency import Chirp, estimate_delay
from real_robot.cameras.geometry import Calibration, Intrinsics
from tests.real_robot.pictures import BENT, LENS, picture, random_pose, random_view

BOARDS = [Board("charuco"), Board("chessboard", 8, 5, 0.03), Board("apriltag", 5, 4, 0.045, 0.036)]


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.rad2deg(np.linalg.norm(cv2.Rodrigues(a[:3, :3].T @ b[:3, :3])[0])))


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.kind)
def test_a_board_is_found_where_it_is(board):
    rng = np.random.default_rng(1)
    for _ in range(2):
        pose = np.linalg.inv(random_view(board, rng))
        view = board.find(picture(board, pose, LENS, rng))
        assert view is not None
        there = LENS.project(view.points @ pose[:3, :3].T + pose[:3, 3])
        assert np.sqrt(((there - view.pixels) ** 2).sum(axis=1).mean()) < (0.5 if board.kind == "apriltag" else 0.15)
        found = locate(view, LENS)
        assert np.linalg.norm(found[:3, 3] - pose[:3, 3]) < 2e-3
        assert degrees(found, pose) < 0.5
    assert board.find(np.full((480, 640, 3), 128, np.uint8)) is None


def test_a_board_prints_at_true_scale(tmp_path):
    from PIL import Image

    board = Board()
    board.write(tmp_path / "board.png")
    image = Image.open(tmp_path / "board.png")
    metres = image.size[0] / image.info["dpi"][0] * 0.0254
    assert metres == pytest.approx((board.columns + 1) * board.square_m, rel=1e-3)
    board.write(tmp_path / "board.pdf")
    assert (tmp_path / "board.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ConfigError, match=r"\.pdf or \.png"):
        board.write(tmp_path / "board.jpg")


def test_impossible_boards_are_refused():
    with pytest.raises(ConfigError, match="upside down"):
        Board("chessboard", 8, 6)
    with pytest.raises(ConfigError, match="charuco"):
        Board("charucco")
    with pytest.raises(ConfigError, match="square_m"):
        Board(square_m=0.01)


def test_a_lens_is_found_and_a_misread_view_named():
    rng, board = np.random.default_rng(2), BOARDS[0]
    views = []
    for _ in range(11):
        view = board.find(picture(board, np.linalg.inv(random_view(board, rng)), BENT, rng))
        assert view is not None
        views.append(view)
    views[3] = views[3]._replace(pixels=views[3].pixels + rng.normal(0, 8, views[3].pixels.shape))
    result = calibrate_intrinsics(views, 640, 480)
    assert result.outliers == [3]
    assert result.rms < 0.3
    lens = result.intrinsics
    assert lens.fx == pytest.approx(BENT.fx, rel=0.01)
    assert lens.cy == pytest.approx(BENT.cy, abs=5)
    rays = np.stack(np.meshgrid(np.linspace(-0.45, 0.45, 9), np.linspace(-0.33, 0.33, 9), [1.0]), -1).reshape(-1, 3)
    assert np.abs(lens.project(rays) - BENT.project(rays)).max() < 4  # in the corners, where no board was
    with pytest.raises(DataError, match="5, better 15"):
        calibrate_intrinsics(views[:4], 640, 480)


def scene(mount, rng, n=9, board=BOARDS[0]):
    """Views of a board with the tool's poses, and the camera's true place."""
    x, z = random_pose(rng, 0.1 if mount == "tool" else 1.0), random_pose(rng, 0.6 if mount == "tool" else 0.1)
    views, tools = [], []
    while len(views) < n:
        camera = random_view(board, rng)  # in the board's frame
        move = z @ camera @ np.linalg.inv(x)
        view = board.find(picture(board, np.linalg.inv(camera), LENS, rng))
        if view is not None:
            views.append(view)
            tools.append(move if mount == "tool" else np.linalg.inv(move))
    return views, tools, x, z


@pytest.mark.parametrize("mount", ["tool", "base"])
def test_a_camera_is_placed_and_a_wrong_pose_named(mount):
    rng = np.random.default_rng(3)
    views, tools, x, z = scene(mount, rng)
    tools = [t @ small(rng, 2e-4, 2e-4) for t in tools]  # the arm's own repeatability
    tools[5] = tools[5] @ small(rng, 0.02, 0.05)
    result = calibrate_extrinsics(views, tools, LENS, mount)
    assert result.outliers == [5]
    assert result.rms < 1
    assert np.linalg.norm(result.pose[:3, 3] - x[:3, 3]) < 2e-3
    assert degrees(result.pose, x) < 0.2
    assert np.linalg.norm(result.board[:3, 3] - z[:3, 3]) < 2e-3
    assert 0 < result.position_std < 2e-3


def small(rng, metres, radians):
    pose = np.eye(4)
    axis, shift = rng.normal(size=3), rng.normal(size=3)
    pose[:3, :3] = cv2.Rodrigues(radians * axis / np.linalg.norm(axis))[0]
    pose[:3, 3] = metres * shift / np.linalg.norm(shift)
    return pose


def test_views_that_do_not_tell_are_refused():
    views, tools, _, _ = scene("tool", np.random.default_rng(4), n=5)
    with pytest.raises(DataError, match="need 5"):
        calibrate_extrinsics(views[:3], tools[:3], LENS, "tool")
    turned = [small(np.random.default_rng(0), 0.1, 0.0) for _ in tools]
    for k, t in enumerate(turned):
        t[:3, :3] = cv2.Rodrigues(np.array([0, 0, 0.3 * k]))[0]
    with pytest.raises(DataError, match="second axis"):
        calibrate_extrinsics(views, turned, LENS, "tool")
    with pytest.raises(DataError, match="agree"):
        calibrate_extrinsics(views, [random_pose(np.random.default_rng(k), 0.5) for k in range(5)], LENS, "tool")


@given(delay=st.floats(0, 0.3), seed=st.integers(0, 2**31), sign=st.sampled_from([-3.0, 0.7]), rate=st.integers(15, 60))
@settings(max_examples=60, deadline=None)
def test_a_delay_is_found_within_5_ms(delay, seed, sign, rate):
    """q at 200 Hz; an effect of any scale and offset, at a camera's rate, with jitter, losses and noise."""
    rng, chirp = np.random.default_rng(seed), Chirp()
    t_cause = np.sort(np.arange(-1, 11.5, 0.005) + rng.uniform(0, 0.004, 2500))
    cause = chirp(t_cause) + rng.normal(0, 2e-4, len(t_cause))
    t_effect = np.arange(0, 11, 1 / rate)
    t_effect = np.sort(t_effect + rng.uniform(0, 0.3 / rate, len(t_effect)))[rng.random(len(t_effect)) > 0.05]
    effect = sign * chirp(t_effect - delay) + 5 + rng.normal(0, 0.05 * abs(sign) * chirp.amplitude, len(t_effect))
    found = estimate_delay(t_cause, cause, t_effect, effect)
    assert abs(found.seconds - delay) < 5e-3
    assert found.fit > 0.9
    assert found.std < 5e-3


def test_an_unrelated_signal_has_no_delay():
    rng, t = np.random.default_rng(0), np.arange(0, 12, 0.005)
    with pytest.raises(DataError, match="does not follow"):
        estimate_delay(t, Chirp()(t), t[::6], rng.normal(size=len(t[::6])))
    with pytest.raises(DataError, match="too few"):
        estimate_delay(t, Chirp()(t), t[:50], t[:50])


def test_a_calibration_survives_its_file(tmp_path):
    pose = random_pose(np.random.default_rng(0), 1.0)
    full = Calibration("front", BENT, pose, "tool", 33.0)
    full.save(tmp_path / "a" / "front.json")
    back = Calibration.load(tmp_path / "a" / "front.json")
    assert back.to_dict() == full.to_dict()
    assert np.allclose(back.in_base(pose), pose @ pose)
    with pytest.raises(ConfigError, match="tool's pose"):
        back.in_base()
    assert Calibration("front").over(full).to_dict() == full.to_dict()
    assert Calibration("front", LENS).over(full).intrinsics == LENS
    with pytest.raises(ConfigError, match="There is no calibration"):
        Calibration.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"camera": "x", "pose": [[1]]}')
    with pytest.raises(ConfigError, match="pose has shape"):
        Calibration.load(tmp_path / "bad.json")


def test_rays_undo_the_projection():
    lens = Intrinsics(64, 48, 61.2, 60.8, 32.7, 23.6, BENT.distortion)
    pixels = lens.project(lens.rays.reshape(-1, 3)).reshape(48, 64, 2)
    expected = np.stack(np.meshgrid(np.arange(64), np.arange(48)), -1)
    assert np.abs(pixels - expected).max() < 0.05
