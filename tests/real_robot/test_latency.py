"""The swing: injected delays of an actuator and of a camera are measured, limits are kept, a stuck arm is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import cv2
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, DataError
from real_robot.calibrate import COMMANDS
from real_robot.calibration.board import Board
from real_robot.calibration.capture import capture
from real_robot.calibration.latency import Chirp, swing
from real_robot.cameras.geometry import Calibration
from real_robot.cameras.simulated import MODEL_FILE, SimulatedCamera
from real_robot.core.clock import VirtualClock
from real_robot.core.ring import Ring
from real_robot.core.types import SECOND, DeviceError, Frame, Joints, RobotSpec, State
from tests.real_robot.pictures import LENS, picture, random_pose, random_view

ARM = """<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="2 2 .1" rgba=".4 .4 .4 1"/>
<body pos="0 0 .1"><joint name="turn" axis="0 0 1"/>
<geom type="box" pos=".3 0 0" size=".3 .04 .05" rgba=".9 .2 .1 1"/></body></worldbody></mujoco>"""


class LateArm:
    """Follows what was written ``delay`` s ago; time passes unevenly between its ticks; the world goes into a ring."""

    def __init__(
        self, clock: VirtualClock, delay: float, world: Ring | None = None, stuck: bool = False, seed: int = 0
    ):
        one = np.ones(1)
        self.spec = RobotSpec("late", ("turn",), -2 * one, 2 * one, 2 * one, 20 * one, 200 * one, 200.0)
        self.clock, self.delay, self.world, self.stuck = clock, round(delay * SECOND), world, stuck
        self.rng, self.q, self.written = np.random.default_rng(seed), 0.5, deque([(0, 0.5)])
        self.stopped, self.largest = False, 0.0

    def connect(self) -> None: ...

    def recover(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> State:
        self.clock.advance(self.rng.uniform(0, 0.002))
        now = self.clock.now()
        while len(self.written) > 1 and self.written[1][0] <= now - self.delay:
            self.written.popleft()
        if not self.stuck:
            self.q = self.written[0][1]
        if self.world is not None:
            self.world.put((now / SECOND, [self.q]), now)
        noisy = np.array([self.q + self.rng.normal(0, 1e-4)])
        return State(now, now / SECOND, noisy, np.zeros(1))

    def write(self, q: Joints) -> None:
        self.largest = max(self.largest, abs(float(q[0]) - self.written[-1][1]) * self.spec.control_hz)
        self.written.append((self.clock.now(), float(q[0])))

    def stop(self) -> None:
        self.stopped = True


@given(delay=st.floats(0, 0.3), seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_action_latency_is_found_within_5_ms(delay, seed):
    clock = VirtualClock()
    arm = LateArm(clock, delay, seed=seed)
    found = swing(arm, 0, Chirp(duration=6.0).within(arm.spec, 0, 0.5), clock, max_error=0.3).action_latency()
    assert abs(found.seconds - delay) < 5e-3
    assert arm.stopped
    assert arm.largest < arm.spec.velocity[0]


@pytest.mark.parametrize(("action", "sensor"), [(0.0, 0.3), (0.12, 0.045), (0.2, 0.0)])
def test_both_latencies_are_found_by_watching(tmp_path, action, sensor):
    """A rendered camera that is late watches an arm that is late; no marker, 30 pictures per second."""
    mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(ARM), str(tmp_path / MODEL_FILE), None)
    ring = Ring.create(tmp_path / "world", np.dtype([("time", "<f8"), ("qpos", "<f8", (1,))]), 2000)
    clock = VirtualClock()
    arm = LateArm(clock, action, ring)
    arm.read()
    camera = SimulatedCamera("eye", tmp_path / "world", position=[0.9, -0.6, 0.8], target=[0.3, 0.2, 0.1], width=128,
                             height=96, delay_ms=1000 * sensor, clock=clock)  # fmt: skip
    clock.advance(0.5)
    arm.read()
    camera.start()
    due, rng = clock.now(), np.random.default_rng(0)

    def frames() -> list[Frame]:
        nonlocal due
        if clock.now() < due:
            return []
        due += round(rng.uniform(0.8, 1.2) * SECOND / 30)
        return [camera.read()]

    seen = swing(arm, 0, Chirp(duration=8.0).within(arm.spec, 0, 0.5), clock, frames=frames, max_error=0.3)
    camera.close()
    assert abs(seen.action_latency().seconds - action) < 5e-3
    assert abs(seen.camera_latency().seconds - sensor) < 5e-3


def test_an_arm_that_does_not_follow_is_stopped():
    clock = VirtualClock()
    arm = LateArm(clock, 0.0, stuck=True)
    with pytest.raises(DeviceError, match="is it free to move"):
        swing(arm, 0, Chirp(amplitude=0.2), clock, max_error=0.1)
    assert arm.stopped


def test_a_camera_that_sees_nothing_has_no_latency():
    clock = VirtualClock()
    arm = LateArm(clock, 0.05)
    seen = swing(arm, 0, Chirp(duration=4.0), clock)
    with pytest.raises(DataError, match="Does the camera run"):
        seen.camera_latency()


@given(q=st.floats(-1.99, 1.99), amplitude=st.floats(0.01, 1.0), hz=st.floats(0.5, 5), speed=st.floats(0.1, 3))
@settings(max_examples=40, deadline=None)
def test_a_swing_keeps_within_limits_or_is_refused(q, amplitude, hz, speed):
    one = np.ones(1)
    spec = RobotSpec("late", ("turn",), -2 * one, 2 * one, speed * one, 20 * one, 400 * one, 200.0)
    try:
        chirp = Chirp(amplitude, high=hz).within(spec, 0, q)
    except ConfigError as e:
        assert "may swing" in str(e)  # noqa: PT017
        return
    t = np.arange(0, chirp.duration, 1e-3)
    x = chirp(t)
    assert x[0] == 0
    assert abs(chirp(chirp.duration)) < 1e-12
    assert chirp.amplitude <= amplitude
    assert np.abs(q + x).max() <= 2
    for limit in (speed, 20.0, 400.0):
        x = np.gradient(x, 1e-3)
        assert np.abs(x[3:-3]).max() <= limit


def test_the_command_finds_a_lens_and_a_place(tmp_path):
    """calibrate intrinsics and extrinsics on a folder as capture leaves it; board writes its drawing."""
    rng, board, x, z = np.random.default_rng(5), Board(), random_pose(np.random.default_rng(6), 0.1), np.eye(4)
    poses = [random_view(board, rng) for _ in range(7)]

    class Eye:
        name, width, height, fps, has_depth, n = "wrist", 640, 480, 30.0, False, 0

        def start(self) -> None: ...

        def close(self) -> None: ...

        def read(self) -> Frame:
            self.n += 1
            return Frame(2**62, self.n, picture(board, np.linalg.inv(poses[self.n - 1]), LENS, rng))

    folder, said = tmp_path / "views", []
    assert capture(Eye(), board, folder, lambda n: n < 7, said.append) == 7
    index = folder / "views.json"
    about = json.loads(index.read_text())
    for view, pose in zip(about["views"], poses, strict=True):
        view["tool"] = (z @ pose @ np.linalg.inv(x)).tolist()
    index.write_text(json.dumps(about))
    assert cv2.imread(str(folder / "000.png")).shape == (480, 640, 3)
    config = {"images": folder, "out": tmp_path / "wrist.json", "mount": "tool"}
    COMMANDS["intrinsics"](config)
    COMMANDS["extrinsics"](config)
    found = Calibration.load(tmp_path / "wrist.json")
    assert found.pose is not None
    assert np.linalg.norm(found.pose[:3, 3] - x[:3, 3]) < 8e-3  # with the lens from seven pictures
    assert found.mount == "tool"


@pytest.mark.slow
def test_the_command_line(tmp_path):
    root = Path(__file__).parents[2]

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "real_robot.calibrate", *args]
        env = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)

    assert "camera=front" in call("--help").stdout
    assert "print it at 100 %" in call("board", f"out={tmp_path}/board.pdf").stdout
    wrong = call("bord")
    assert wrong.returncode == 2
    assert "Did you mean 'board'" in wrong.stderr
    assert "robot=" in call("latency").stderr
