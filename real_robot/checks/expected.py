"""In words: where a robot's model says that its tool goes when a joint moves."""

from __future__ import annotations

import numpy as np

from real_robot.core.kinematics import Kinematics, rotation_error
from real_robot.core.types import Joints, RobotSpec

LEAST = 0.004  # m, less is hard to see
WAYS = (("forward", "back"), ("to the left", "to the right"), ("up", "down"))  # +, - along x, y, z of the base
SEEN_FROM = (("the front", "the back"), ("the left", "the right"), ("above", "below"))


def expected(spec: RobotSpec, q: Joints, joint: int, by: float) -> str:
    """What a person should see when ``joint`` moves ``by`` from ``q`` (n,).

    Left and right are those of somebody who stands behind the base and looks along its x axis.
    """
    if spec.gripper and joint == spec.n - 1:
        return "the gripper opens" if by > 0 else "the gripper closes"
    if spec.model is None or spec.tcp is None:
        return f"{spec.joints[joint]} turns to its {'positive' if by > 0 else 'negative'} side"
    kinematics = Kinematics(spec)
    moved = q.copy()
    moved[joint] += by
    before, after = kinematics.forward(q), kinematics.forward(moved)
    way = after[:3, 3] - before[:3, 3]
    if np.abs(way).max() > LEAST:
        order = [i for i in np.argsort(-np.abs(way)) if abs(way[i]) > max(LEAST, 0.4 * np.abs(way).max())]
        parts = [f"{100 * abs(way[i]):.1f} cm {WAYS[i][int(way[i] < 0)]}" for i in order]
        return f"the tool moves {' and '.join(parts)}"
    turn = rotation_error(before[:3, :3], after[:3, :3])
    axis = int(np.abs(turn).argmax())
    return (
        f"the tool turns in place by {np.degrees(np.linalg.norm(turn)):.0f} degrees, against the clock "
        f"as seen from {SEEN_FROM[axis][int(turn[axis] < 0)]}"
    )
