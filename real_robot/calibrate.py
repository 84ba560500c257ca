"""What a camera is, where it is and how late: ``python -m real_robot.calibrate board|capture|intrinsics|...``.

Each command adds what it finds to the camera's file (out=front.json), which cameras.front.calibration then names.
"""

from __future__ import annotations

import multiprocessing as mp
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from configs.loader import check_at_least, help_text, load_config
from data.construct import construct
from data.errors import ConfigError, DataError, nearest
from launch.terminal import console, run_main
from real_robot.calibration.board import Board
from real_robot.calibration.capture import capture, load_views
from real_robot.calibration.handeye import calibrate_extrinsics
from real_robot.calibration.intrinsics import calibrate_intrinsics
from real_robot.calibration.latency import Chirp, Delay, swing
from real_robot.cameras import process as camera_process
from real_robot.cameras.build import build_camera
from real_robot.cameras.geometry import Calibration
from real_robot.core.clock import MonotonicClock
from real_robot.core.streams import Session
from real_robot.core.types import DeviceError, Frame, Robot

USAGE = """python -m real_robot.calibrate board out=board.pdf                                    print it, measure it
       python -m real_robot.calibrate capture camera=front robot=ur out=views           pictures with poses
       python -m real_robot.calibrate intrinsics images=views out=front.json            the lens
       python -m real_robot.calibrate extrinsics images=views mount=tool out=front.json where the camera sits
       python -m real_robot.calibrate latency robot=ur camera=front out=front.json      how late it and the robot are"""


def _need(config: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if not config.get(name)]
    if missing:
        raise ConfigError(f"This command needs {' and '.join(f'{m}=' for m in missing)}; see --help.")


def _camera_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the camera that was named, or described."""
    chosen, known = config["camera"], config.get("cameras") or {}
    if isinstance(chosen, Mapping):
        return {"name": "camera", **chosen}
    if chosen not in known:
        known_names = nearest(str(chosen), list(known)) if known else "It has none: give camera={type: opencv, ...}."
        raise ConfigError(f"The robot has no camera '{chosen}'. {known_names}")
    return {"name": chosen, **known[chosen]}


def _robot(config: Mapping[str, Any], session: Session) -> Robot:
    return import_module("real_robot.robots.build").build_robot(config["robot"], session)


def _known(config: Mapping[str, Any], camera: str) -> Calibration:
    path = Path(config["out"])
    return Calibration.load(path) if path.exists() else Calibration(camera)


def _save(config: Mapping[str, Any], calibration: Calibration) -> None:
    calibration.save(config["out"])
    print(f"{config['out']}: set cameras.{calibration.camera}.calibration to it")


@contextmanager
def _connected(config: Mapping[str, Any], session: Session):
    robot = _robot(config, session)
    robot.connect()
    try:
        yield robot
    finally:
        robot.close()


def make_board(config: Mapping[str, Any]) -> None:
    """Writes the drawing."""
    _need(config, "out")
    board = construct(Board, config["board"], "board")
    board.write(config["out"])
    print(f"{config['out']}: print it at 100 %, glue it to something flat, measure a square and give board.square_m")


def take_pictures(config: Mapping[str, Any]) -> None:
    """Fills a folder."""
    _need(config, "camera", "out")
    left, every = config["count"], config["every"]

    def wait(number: int) -> bool:
        nonlocal left
        if left <= 0:
            return False
        left -= 1
        if every is not None:
            time.sleep(every)
            return True
        return input(f"picture {number}: Enter takes it, q ends: ").strip() != "q"

    session = Session()
    camera, _ = build_camera(_camera_options(config), session.folder)
    board = construct(Board, config["board"], "board")
    try:
        if config.get("robot"):
            with _connected(config, session) as robot:
                camera.start()
                shown = capture(camera, board, Path(config["out"]), wait, print, robot)
        else:
            camera.start()
            shown = capture(camera, board, Path(config["out"]), wait, print)
    finally:
        camera.close()
        session.close()
    print(f"{config['out']}: {shown} pictures of the board")


def _tell_errors(files: Sequence[str], errors: Sequence[float], outliers: Sequence[int]) -> None:
    for i, (name, error) in enumerate(zip(files, errors, strict=True)):
        print(f"  {name}  {error:6.2f} px{'  left out' if i in outliers else ''}")


def find_lens(config: Mapping[str, Any]) -> None:
    """Intrinsics."""
    _need(config, "images", "out")
    views = load_views(config["images"])
    result = calibrate_intrinsics(views.detections, views.width, views.height)
    _tell_errors(views.files, result.errors, result.outliers)
    lens = result.intrinsics
    print(f"{views.camera}: fx {lens.fx:.1f} fy {lens.fy:.1f} cx {lens.cx:.1f} cy {lens.cy:.1f} px, distortion "
          f"{np.round(lens.distortion, 4).tolist()}; reprojection error {result.rms:.2f} px, focal length "
          f"+- {result.focal_std:.1f} px")  # fmt: skip
    _save(config, replace(_known(config, views.camera), intrinsics=lens))


def find_place(config: Mapping[str, Any]) -> None:
    """Extrinsics."""
    _need(config, "images", "out")
    views, known = load_views(config["images"]), Calibration.load(config["out"])
    if known.intrinsics is None:
        raise ConfigError(f"{config['out']} has no intrinsics yet: run `calibrate intrinsics` first.")
    if (known.intrinsics.width, known.intrinsics.height) != (views.width, views.height):
        raise ConfigError(f"{config['out']} holds for {known.intrinsics.width} x {known.intrinsics.height}, the "
                          f"pictures are {views.width} x {views.height}.")  # fmt: skip
    if config["mount"] not in ("base", "tool"):
        raise ConfigError(f"mount is base or tool, not {config['mount']}.")
    posed = [(f, d, t) for f, d, t in zip(views.files, views.detections, views.tools, strict=True) if t is not None]
    if not posed:
        raise DataError(f"{config['images']}: no picture has a pose of the robot: capture with robot=.")
    files, detections, tools = zip(*posed, strict=True)
    result = calibrate_extrinsics(detections, tools, known.intrinsics, config["mount"])
    _tell_errors(files, result.errors, result.outliers)
    print(f"{views.camera}: at {np.round(result.pose[:3, 3], 4).tolist()} m in the frame of the {config['mount']}, "
          f"+- {1000 * result.position_std:.1f} mm and {np.rad2deg(result.rotation_std):.2f} degrees; reprojection "
          f"error {result.rms:.2f} px")  # fmt: skip
    _save(config, replace(known, pose=result.pose, mount=config["mount"]))


def find_latency(config: Mapping[str, Any]) -> None:
    """Swings one joint; action latency, and the camera's where one is named."""
    _need(config, "robot")
    session, process = Session(), None
    try:
        with _connected(config, session) as robot:
            joints = robot.spec.joints
            if config["joint"] is not None and config["joint"] not in joints:
                raise ConfigError(
                    f"The robot has no joint '{config['joint']}'. {nearest(config['joint'], list(joints))}"
                )
            joint = 0 if config["joint"] is None else joints.index(config["joint"])
            chirp = Chirp(config["amplitude"], config["duration"], high=config["hz"])
            chirp = chirp.within(robot.spec, joint, float(robot.read().q[joint]))
            print(f"{joints[joint]} of {robot.spec.name} is going to swing by {chirp.amplitude:.3f} for "
                  f"{chirp.duration:g} s")  # fmt: skip
            if config["ask"] and input("Is the room clear, the e-stop at hand? Type yes: ").strip() != "yes":
                return
            poll = None
            if config["camera"] is not None:
                options = {k: v for k, v in _camera_options(config).items() if k != "calibration"} | {"latency_ms": 0.0}
                process, poll = _watch(session, options)
            seen = swing(robot, joint, chirp, MonotonicClock(), frames=poll)
        print(f"action latency {_words(seen.action_latency())}")
        if config["camera"] is not None:
            delay, name = seen.camera_latency(), _camera_options(config)["name"]
            print(f"camera latency {_words(delay)}")
            if config["out"]:
                _save(config, replace(_known(config, name), latency_ms=round(1000 * delay.seconds, 2)))
    finally:
        session.stop()
        if process is not None:
            process.join(5)
        session.close()


def _words(d: Delay) -> str:
    return f"{1000 * d.seconds:.1f} ms (+- {1000 * d.std:.1f} ms, R^2 {d.fit:.3f})"


def _watch(session: Session, options: dict[str, Any]) -> tuple[Any, Any]:
    """The camera's process, and a function that tells its new pictures."""
    process = mp.get_context("spawn").Process(
        target=camera_process.run, args=(str(session.folder), options), daemon=True
    )
    process.start()
    name, end = f"camera.{options['name']}", time.monotonic() + 20
    while not session.has(name):
        if time.monotonic() > end or not process.is_alive():
            events = session.attach(f"event.{name}").latest() if session.has(f"event.{name}") else None
            why = bytes(events.data["text"]).decode() if events is not None else "its process says nothing"
            raise DeviceError(f"camera {options['name']} shows nothing: {why}")
        time.sleep(0.05)
    ring, seen = session.attach(name), 0

    def poll() -> list[Frame]:
        nonlocal seen
        records, missed = ring.since(seen)
        seen += missed + len(records)
        return [Frame(r.t, int(r.data["seq"]), r.data["rgb"]) for r in records]

    return process, poll


COMMANDS = {
    "board": make_board,
    "capture": take_pictures,
    "intrinsics": find_lens,
    "extrinsics": find_place,
    "latency": find_latency,
}


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("calibrate", USAGE))
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"Unknown command '{argv[0]}'. {nearest(argv[0], list(COMMANDS))}")
    config = load_config("calibrate", argv[1:])
    check_at_least(1, config, ["count"])
    console.print(f"calibrate {argv[0]}")
    COMMANDS[argv[0]](config)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
