"""A small arm of five or six joints and a gripper, and a control process without limits."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from real_robot.core.streams import HOLD, HUMAN, Session, command_dtype, state_dtype
from real_robot.core.types import SECOND, Button, RobotSpec

AXES = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
LENGTHS = (0.12, 0.25, 0.22, 0.06, 0.06, 0.05)
HOME = (0.2, -0.7, 1.3, 0.1, 0.8, -0.2)


def model(joints: int = 6) -> str:
    bodies = ""
    for i in range(joints):
        along = f"0 0 {LENGTHS[i]}" if i < 2 else f"{LENGTHS[i]} 0 0"
        before = "0 0 0" if i == 0 else (f"0 0 {LENGTHS[i - 1]}" if i < 3 else f"{LENGTHS[i - 1]} 0 0")
        bodies += f'''<body pos="{before}"><joint name="j{i}" axis="{AXES[i]}" range="-3 3"/>
        <geom type="capsule" fromto="0 0 0 {along}" size="{0.035 - 0.003 * i}" rgba="0.9 0.55 0.1 1"/>'''
    tip = f"{LENGTHS[joints - 1]} 0 0"
    bodies += f'<site name="tcp" pos="{tip}"/><geom type="box" size=".02 .03 .01" pos="{tip}"/>' + "</body>" * joints
    return f'<mujoco><compiler angle="radian"/><worldbody>{bodies}</worldbody></mujoco>'


def small_arm(folder: Path, joints: int = 6) -> RobotSpec:
    path = folder / "small_arm.xml"
    path.write_text(model(joints))
    n = joints + 1
    return RobotSpec(
        name="small",
        joints=(*(f"j{i}" for i in range(joints)), "gripper"),
        lower=np.r_[np.full(joints, -3.0), 0],
        upper=np.r_[np.full(joints, 3.0), 1],
        velocity=np.full(n, 3.0),
        acceleration=np.full(n, 20.0),
        jerk=np.full(n, 500.0),
        control_hz=100,
        gripper=True,
        model=path,
        tcp="tcp",
        home=np.r_[HOME[:joints], 0.5],
    )


def control(folder: str, spec: RobotSpec, camera: bool = False) -> None:
    """Sends what the person asks for while that is enabled; a camera that shows a moving square, if wanted."""
    from real_robot.core.streams import camera_dtype

    session = Session(folder)
    n = spec.n
    state_ring, command_ring = (
        session.reopen("state", state_dtype(n), 512),
        session.reopen("command", command_dtype(n), 512),
    )
    picture = session.reopen("camera.top", camera_dtype(48, 64, False), 8) if camera else None
    assert spec.home is not None
    q, enabled, seen, tick = spec.home.copy(), False, 0, 0
    while not session.stopping:
        now = time.monotonic_ns()
        said = session.attach("teleop").since(seen)[0] if session.has("teleop") else []
        for record in said:
            seen = record.n
            buttons = Button(int(record.data["buttons"]))
            enabled = (enabled or Button.ENABLE in buttons) and not buttons & (Button.DISABLE | Button.ESTOP)
        teleop = session.attach("teleop").latest() if session.has("teleop") else None
        led = enabled and teleop is not None and bool(teleop.data["engaged"]) and now - teleop.t < SECOND
        if led and teleop is not None:
            q = teleop.data["target"].copy()
        nan = np.full(n, np.nan)
        state_ring.put(np.array((now / SECOND, q, np.zeros(n), nan, 0), state_ring.dtype), now)
        sent = (q, q, nan, HUMAN if led else HOLD, 2 if enabled else 1, 0, -1, 0.0, 100_000)
        command_ring.put(np.array(sent, command_ring.dtype), now)
        if picture is not None and tick % 5 == 0:
            rgb = np.full((48, 64, 3), 60, np.uint8)
            rgb[16:32, tick % 48 : tick % 48 + 16] = (250, 150, 30)
            picture.put(np.array((tick, rgb), picture.dtype), now)
        tick += 1
        time.sleep(0.01)
