"""A small arm that a test can hold in its hand: its model, and a robot that does what it is told, or not."""

from __future__ import annotations

import numpy as np

from real_robot.core.clock import VirtualClock
from real_robot.core.types import SECOND, DeviceError, RobotMode, RobotSpec, State

MODEL = """
<mujoco><compiler angle="radian"/><worldbody>
  <body name="one"><joint name="one" type="hinge" axis="0 0 1"/><geom type="capsule" fromto="0 0 0 .3 0 0" size=".02"/>
    <body name="two" pos=".3 0 0"><joint name="two" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 .3 0 0" size=".02"/>
      <body name="three" pos=".3 0 0"><joint name="three" type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 .1 0 0" size=".02"/><site name="tcp" pos=".1 0 0"/>
      </body></body></body>
</worldbody></mujoco>
"""
JOINTS = ("one", "two", "three")


def small_spec(tmp_path=None, **changes) -> RobotSpec:
    model = None
    if tmp_path is not None:
        model = tmp_path / "arm.xml"
        model.write_text(MODEL)
    options = {
        "name": "small", "joints": JOINTS, "lower": [-2.0] * 3, "upper": [2.0] * 3, "velocity": [1.5, 1.5, 2.0],
        "acceleration": [6.0, 6.0, 10.0], "jerk": [80.0, 80.0, 150.0], "control_hz": 200.0, "model": model,
        "tcp": "tcp" if model else None, "home": [0.0] * 3,
    }  # fmt: skip
    return RobotSpec(**{**options, **changes})


class PerfectRobot:
    """Is at once where it is told to be; can be broken."""

    def __init__(self, spec: RobotSpec, clock: VirtualClock):
        self.spec, self.clock = spec, clock
        self.q = np.zeros(spec.n) if spec.home is None else spec.home.copy()
        self.written: list[np.ndarray] = []
        self.times: list[int] = []
        self.stops = self.recoveries = 0
        self.frozen_at: float | None = None
        self.mode, self.dead, self.stuck, self.closed = RobotMode.READY, False, False, False

    def connect(self) -> None: ...

    def read(self) -> State:
        if self.dead:
            raise DeviceError("no answer")
        now = self.clock.now()
        t_robot = now / SECOND if self.frozen_at is None else self.frozen_at
        return State(now, t_robot, self.q.copy(), np.zeros(self.spec.n), None, self.mode)

    def write(self, q: np.ndarray) -> None:
        self.written.append(q.copy())
        self.times.append(self.clock.now())
        if not self.stuck:
            self.q = q.copy()

    def stop(self) -> None:
        self.stops += 1

    def recover(self) -> None:
        self.recoveries += 1
        self.mode = RobotMode.READY

    def close(self) -> None:
        self.closed = True


def check_limits(spec: RobotSpec, sent: np.ndarray, start: np.ndarray | None = None) -> None:
    """Positions (T, n), one per control period, starting at rest: within every limit, by differences."""
    assert np.isfinite(sent).all()
    start = sent[0] if start is None else start
    assert (sent >= np.minimum(spec.lower, start) - 1e-12).all()
    assert (sent <= np.maximum(spec.upper, start) + 1e-12).all()
    path = np.concatenate([np.repeat(start[None], 3, 0), sent])
    for order, limit in enumerate((spec.velocity, spec.acceleration, spec.jerk), start=1):
        most = np.abs(np.diff(path, order, axis=0)).max(0) / spec.dt**order
        assert (most <= limit * (1 + 1e-7)).all(), (order, most, limit)
