"""Pictures of a board with the robot's pose at each: a folder that lens and place are found from, again and again.

000.png ...    pictures
views.json     board, camera, width, height, and for each picture its file and the tool's pose (or null)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.construct import construct
from data.errors import DataError
from real_robot.calibration.board import Board, Detection
from real_robot.cameras.geometry import Pose
from real_robot.core.kinematics import Kinematics
from real_robot.core.types import Camera, Frame, Robot

STILL = 2e-3  # rad or m that joints may differ by before and after a picture


class Views(NamedTuple):
    """Of a folder: only pictures that show the board; ``files`` names them, ``tools`` is None where no robot was."""

    camera: str
    width: int
    height: int
    files: list[str]
    detections: list[Detection]
    tools: list[Pose | None]


def fresh(camera: Camera, after: int) -> Frame:
    """The first picture that was taken after ``after`` (ns)."""
    while (frame := camera.read()).t <= after:
        pass
    return frame


def capture(
    camera: Camera, board: Board, out: Path, wait: Callable[[int], bool], say: Callable[[str], None],
    robot: Robot | None = None,
) -> int:  # fmt: skip
    """Takes pictures into ``out``, adding to what is there; returns how many show the board.

    Args:
        camera: started.
        wait: called before each picture with its number; False ends.
        robot: connected; moved by somebody else, a person or a pendant.
    """
    out.mkdir(parents=True, exist_ok=True)
    index = out / "views.json"
    views = json.loads(index.read_text())["views"] if index.exists() else []
    kinematics = Kinematics(robot.spec) if robot is not None else None
    shown = 0
    while wait(len(views)):
        asked, before = time.monotonic_ns(), None if robot is None else robot.read().q
        frame = fresh(camera, asked)
        tool = None
        if robot is not None and kinematics is not None and before is not None:
            q = robot.read().q
            if np.abs(q - before).max() > STILL:
                say(f"picture {len(views)}: the robot was moving; not taken")
                continue
            tool = kinematics.forward(q).tolist()
        found = board.find(frame.rgb)
        if found is None:
            say(f"picture {len(views)}: too little of the board shows; not taken")
            continue
        name = f"{len(views):03}.png"
        cv2.imwrite(str(out / name), cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
        views.append({"file": name, "tool": tool})
        height, width = frame.rgb.shape[:2]
        about: dict[str, Any] = {"board": asdict(board), "camera": camera.name, "width": width, "height": height}
        index.write_text(json.dumps({**about, "views": views}, indent=1) + "\n")
        say(f"picture {name}: {len(found.points)} points")
        shown += 1
    return shown


def load_views(folder: str | Path) -> Views:
    """What ``capture`` wrote, with the board found in it.

    Raises:
        DataError: no such folder, or pictures are missing.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "views.json").read_text())
        entries: Sequence[dict[str, Any]] = about["views"]
        board = construct(Board, about["board"], f"{folder}/views.json: board")
        views = Views(about["camera"], about["width"], about["height"], [], [], [])
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{folder} holds no pictures by `calibrate capture`: views.json: {e}") from e
    for entry in entries:
        bgr = cv2.imread(str(folder / entry["file"]))
        if bgr is None or bgr.shape[:2] != (views.height, views.width):
            raise DataError(f"{folder / entry['file']} is missing, or not {views.width} x {views.height}.")
        found = board.find(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        if found is not None:
            views.files.append(entry["file"])
            views.detections.append(found)
            views.tools.append(None if entry["tool"] is None else np.array(entry["tool"], np.float64))
    return views
