"""Cameras: real streams, recordings and renderers, through the classes and the process that deployments use."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import cv2
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cloud import Workspace
from data.errors import ConfigError
from real_robot.cameras.build import build_camera
from real_robot.cameras.cloud import CloudSensor
from real_robot.cameras.geometry import Calibration, Intrinsics
from real_robot.cameras.opencv import OpenCvCamera
from real_robot.cameras.process import read_description, run
from real_robot.cameras.simulated import MODEL_FILE, SimulatedCamera
from real_robot.cameras.stamps import Backlog, DeviceClock
from real_robot.core.clock import VirtualClock
from real_robot.core.ring import Ring
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Camera, DeviceError, Frame
from tests.real_robot import mjpeg

SPAWN = mp.get_context("spawn")
MS = 1_000_000


def start(target: Callable[..., None], *args: object) -> mp.process.BaseProcess:
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def read_all(camera: Camera) -> tuple[list[Frame], str]:
    """Until it fails, and how."""
    frames = []
    try:
        while True:
            frames.append(camera.read())
    except DeviceError as e:
        return frames, str(e)
    finally:
        camera.close()


def said(session: Session, name: str) -> str:
    records, _ = session.attach(f"event.camera.{name}").since(0)
    return "\n".join(bytes(r.data["text"]).decode() for r in records)


@pytest.mark.slow
def test_pictures_are_new_whatever_happens_to_camera_and_process():
    """A stream is watched while its reader is frozen, killed -9, and its camera unplugged: no stamp is ever wrong."""
    port, session = free_port(), Session()
    server = start(mjpeg.serve, port)
    options = {"type": "opencv", "name": "front", "source": f"http://127.0.0.1:{port}/", "timeout_s": 3.0}
    camera = start(run, str(session.folder), options)
    ages: list[float] = []
    try:
        assert until(lambda: session.has("camera.front") and session.attach("camera.front").newest > 15)
        ring = session.attach("camera.front")
        assert ring.dtype["rgb"].shape == (*mjpeg.SHAPE, 3)

        os.kill(camera.pid or 0, signal.SIGSTOP)
        time.sleep(1.5)
        before = ring.newest
        os.kill(camera.pid or 0, signal.SIGCONT)
        assert until(lambda: ring.newest > before + 10)

        os.kill(server.pid or 0, signal.SIGKILL)
        server.join()
        assert until(lambda: "Trying again" in said(session, "front"))
        before = ring.newest
        server = start(mjpeg.serve, port)
        assert until(lambda: ring.newest > before + 10)
        assert "pictures come" in said(session, "front").rsplit("Trying again", 1)[1]

        os.kill(camera.pid or 0, signal.SIGKILL)
        camera.join()
        before = ring.newest
        camera = start(run, str(session.folder), options)
        assert until(lambda: ring.newest > before + 10)

        records, _ = ring.since(0)
        ages = [mjpeg.age_ms(r.data["rgb"], r.t) for r in records]
        assert np.median(ages) < 150
        assert max(ages) < 600  # the pause was 1.5 s; a loaded machine is late by itself
        assert (np.diff([r.t for r in records]) > 0).all()
        assert (np.diff([int(r.data["seq"]) for r in records]) > 0).all()
        assert read_description(session.folder, "front")["width"] == mjpeg.SHAPE[1]
        session.stop()
        camera.join(10)
        assert camera.exitcode == 0
    finally:
        for process in (server, camera):
            process.kill()
        session.close()


def test_a_file_is_played_at_its_rate_and_ends(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (120, 80))
    for k in range(20):
        writer.write(np.full((80, 120, 3), (0, 0, 10 * k), np.uint8))  # BGR
    writer.release()
    camera = OpenCvCamera("film", str(path), width=320, height=240, latency_ms=100.0, timeout_s=1.0)
    camera.start()
    assert (camera.width, camera.height, camera.fps) == (120, 80, 50.0)
    assert camera.notes == ["width is 120, asked for 320", "height is 80, asked for 240"]
    seen, error = read_all(camera)
    assert "has ended" in error
    assert time.monotonic_ns() - seen[-1].t >= 100 * MS
    assert len(seen) > 10
    assert seen[-1].t - seen[0].t > 0.8 * (seen[-1].seq - seen[0].seq) * 20 * MS
    last = seen[-1].rgb[40, 60]
    assert last[0] > 150
    assert last[2] < 30


def test_what_does_not_open_says_what_to_look_at():
    with pytest.raises(DeviceError, match="is it plugged in"):
        OpenCvCamera("wrist", "/dev/video97").start()
    with pytest.raises(DeviceError, match="address"):
        OpenCvCamera("wrist", f"http://127.0.0.1:{free_port()}/", timeout_s=0.5).start()


def test_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="Known: opencv, realsense, simulated"):
        build_camera({"type": "webcam", "name": "a"})
    with pytest.raises(ConfigError, match="Did you mean 'latency_ms'"):
        build_camera({"type": "opencv", "name": "a", "source": 0, "latency": 3})
    with pytest.raises(ConfigError, match="source"):
        build_camera({"type": "opencv", "name": "a"})
    with pytest.raises(ConfigError, match="four letters"):
        build_camera({"type": "opencv", "name": "a", "source": 0, "pixel_format": "MJPEG"})
    Calibration("a", latency_ms=42.0).save(tmp_path / "a.json")
    camera, calibration = build_camera(
        {"type": "opencv", "name": "a", "source": "0", "calibration": tmp_path / "a.json"}
    )
    assert isinstance(camera, OpenCvCamera)
    assert camera.source == 0
    assert camera._latency == 42 * MS
    assert calibration.latency_ms == 42.0


@given(st.lists(st.floats(0, 0.03), min_size=30, max_size=80), st.integers(-(10**15), 10**15), st.floats(-5e-5, 5e-5))
@settings(max_examples=50, deadline=None)
def test_a_device_clock_is_followed_by_its_fastest_messages(delays, offset, drift):
    clock, worst = DeviceClock(), []
    for k, delay in enumerate([0.0, *delays]):
        taken = k * SECOND // 30
        device = round(taken * (1 + drift)) + offset
        worst.append(abs(clock.map(device, taken + round(delay * SECOND)) - taken))
    assert max(worst) < 1 * MS


def test_a_backlog_is_told_from_pictures_that_were_waited_for():
    period, t = 33 * MS, 0
    backlog = Backlog(period, t)

    def come(wait_ms: float) -> bool:
        nonlocal t
        asked, t = t, t + round(wait_ms * MS)
        return backlog.holds(asked, t)

    assert [come(w) for w in (1, 1, 30, 33, 2, 33)] == [True, True, False, False, False, False]
    assert [come(w) for w in (900, 1, 1, 25, 33)] == [True, True, True, False, False]
    dim = [come(140) for _ in range(20)]  # auto-exposure has slowed down
    assert not any(dim[4:])


WORLD = """<mujoco><worldbody><light pos="0 0 3"/>
<geom type="plane" size="2 2 .1" rgba=".3 .3 .3 1"/>
<body name="block" pos="0 0 .1"><joint name="slide" type="slide" axis="1 0 0"/>
<geom type="box" size=".05 .05 .1" rgba="1 0 0 1"/></body>
<camera name="top" pos="0 0 1.2" xyaxes="1 0 0 0 1 0"/></worldbody></mujoco>"""


def simulated(folder, clock, slots=400, **options) -> tuple[SimulatedCamera, Ring]:
    mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(WORLD), str(folder / MODEL_FILE), None)
    ring = Ring.create(folder / "world", np.dtype([("time", "<f8"), ("qpos", "<f8", (1,))]), slots)
    options = {"camera": "top", "width": 96, "height": 72, "clock": clock} | options
    return SimulatedCamera("sim", folder / "world", **options), ring


def middle(picture: np.ndarray) -> float:
    """Column of the red block."""
    red = (picture[..., 0] > 100) & (picture[..., 1] < 100)
    return float(np.nonzero(red)[1].mean())


def test_a_simulated_camera_is_as_late_as_it_is_told(tmp_path):
    clock = VirtualClock()
    camera, ring = simulated(tmp_path, clock, depth=True, fps=20.0, delay_ms=100.0, latency_ms=30.0)
    speed = 0.1
    for k in range(120):
        ring.put((0.01 * k, [speed * 0.01 * k - 0.1]), clock.now() + k * SECOND // 100)
    begin = clock.now()
    clock.advance(0.2)
    camera.start()
    lens = camera.intrinsics
    assert lens is not None
    for _ in range(4):
        frame = camera.read()
        received = frame.t + 30 * MS
        assert received == clock.now()
        x = speed * (received - begin - 100 * MS) / SECOND - 0.1
        assert middle(frame.rgb) == pytest.approx(lens.cx + lens.fx * x / 1.0, abs=0.8)
        assert frame.depth is not None
        assert frame.depth[36, round(middle(frame.rgb))] == pytest.approx(1.0, abs=2e-3)
        assert frame.depth[5, 5] == pytest.approx(1.2, abs=2e-3)
    clock.advance(5)
    camera.read()  # what the world came to
    with pytest.raises(DeviceError, match="stands still"):
        camera.read()
    camera.close()


def test_a_cloud_from_depth_lies_where_things_are(tmp_path):
    """Two cameras, one of its own place; the cloud holds the block and nothing of the table."""
    clock = VirtualClock()
    first, ring = simulated(tmp_path, clock, depth=True)
    second = SimulatedCamera("side", tmp_path / "world", position=[0.5, -0.5, 0.6], target=[0, 0, 0.1], depth=True,
                             width=96, height=72, clock=clock)  # fmt: skip
    ring.put((0.0, [0.05]), clock.now())
    depth, known = {}, {}
    for camera in (first, second):
        camera.start()
        frame = camera.read()
        assert frame.depth is not None
        depth[camera.name] = frame.depth
        known[camera.name] = Calibration(camera.name, camera.intrinsics, camera.pose)
        camera.close()
    space = Workspace(np.array([-0.3, -0.3, 0.01]), np.array([0.3, 0.3, 0.5]))
    points = CloudSensor(known, space, 128).points(depth)
    assert points.shape == (128, 3)
    block = np.abs(points - [0.05, 0, 0.1])
    assert (block < np.array([0.05, 0.05, 0.1]) + 0.004).all()
    assert (points[:, 2] > 0.197).any()  # its top
    assert (points[:, 1] < -0.047).any()  # its side
    with pytest.raises(ConfigError, match="intrinsics hold for"):
        CloudSensor(known, space, 128).points({k: d[:10] for k, d in depth.items()})
    with pytest.raises(ConfigError, match="intrinsics are unknown"):
        CloudSensor({"x": Calibration("x")}, space, 128)


def test_a_simulated_camera_waits_for_its_simulator_in_its_process():
    session = Session()
    camera = start(run, str(session.folder), {"type": "simulated", "name": "sim", "camera": "top", "timeout_s": 0.5,
                                              "width": 64, "height": 48})  # fmt: skip
    stop = threading.Event()
    try:
        assert until(lambda: session.has("event.camera.sim") and "no ring" in said(session, "sim"))
        mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(WORLD), str(session.folder / MODEL_FILE), None)
        ring = session.create("world", np.dtype([("time", "<f8"), ("qpos", "<f8", (1,))]), 200)

        def simulate() -> None:
            while not stop.wait(0.01):
                ring.put((0.0, [0.0]), time.monotonic_ns())

        threading.Thread(target=simulate, daemon=True).start()
        assert until(lambda: session.has("camera.sim") and session.attach("camera.sim").newest > 5)
        pose = Calibration.from_dict(read_description(session.folder, "sim")["calibration"]).pose
        assert pose is not None
        assert np.allclose(pose[:3, 3], [0, 0, 1.2])
        stop.set()
        assert until(lambda: "stands still" in said(session, "sim"))
    finally:
        stop.set()
        camera.kill()
        session.close()


def record(rs, path: str, lens: Intrinsics, n: int) -> None:
    """A recording of a wall at 0.5 m with a nearer patch, by a depth camera 15 mm beside the colour one."""
    device = rs.software_device()
    device.register_info(rs.camera_info.name, "simulated")
    device.register_info(rs.camera_info.serial_number, "123")
    depth_sensor, colour_sensor = device.add_sensor("Stereo Module"), device.add_sensor("RGB Camera")

    def stream(kind, number, form, size):
        v = rs.video_stream()
        v.type, v.index, v.uid, v.width, v.height, v.fps, v.bpp, v.fmt = (kind, 0, number, lens.width, lens.height, 30,
                                                                          size, form)  # fmt: skip
        i = rs.intrinsics()
        i.width, i.height, i.fx, i.fy, i.ppx, i.ppy = lens.width, lens.height, lens.fx, lens.fy, lens.cx, lens.cy
        i.model, i.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        v.intrinsics = i
        return v

    depth_profile = depth_sensor.add_video_stream(stream(rs.stream.depth, 1, rs.format.z16, 2))
    colour_profile = colour_sensor.add_video_stream(stream(rs.stream.color, 2, rs.format.rgb8, 3))
    depth_sensor.add_read_only_option(rs.option.depth_units, 0.001)
    beside = rs.extrinsics()
    beside.rotation, beside.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [0.015, 0, 0]
    depth_profile.register_extrinsics_to(colour_profile, beside)
    recorder = rs.recorder(path, device)
    syncer = rs.syncer()
    sensors = recorder.query_sensors()
    for sensor, profile in zip(sensors, (depth_profile, colour_profile), strict=True):
        sensor.open(profile)
        sensor.start(syncer)
    for k in range(n):
        depth = np.full((lens.height, lens.width), 500, np.uint16)
        depth[20:28, 28:36] = 300
        colour = np.full((lens.height, lens.width, 3), (k, 0, 200), np.uint8)
        for sensor, image, profile, size in ((depth_sensor, depth, depth_profile, 2),
                                             (colour_sensor, colour, colour_profile, 3)):  # fmt: skip
            frame = rs.software_video_frame()
            frame.pixels, frame.stride, frame.bpp = image, lens.width * size, size
            frame.timestamp, frame.domain = 1000 + k * 1000 / 30, rs.timestamp_domain.hardware_clock
            frame.frame_number, frame.profile = k, profile.as_video_stream_profile()
            if size == 2:
                frame.depth_units = 0.001
            sensor.on_video_frame(frame)
        time.sleep(1 / 30)
    time.sleep(0.3)
    for sensor in sensors:
        sensor.stop()
        sensor.close()


def test_a_realsense_recording_through_the_pipeline(tmp_path):
    rs = pytest.importorskip("pyrealsense2", exc_type=ImportError)
    lens = Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)
    path = str(tmp_path / "recording.db3")
    record(rs, path, lens, 30)
    camera, calibration = build_camera({"type": "realsense", "name": "d435", "recording": path, "timeout_s": 0.7})
    camera.start()
    assert (camera.width, camera.height, camera.fps) == (64, 48, 30.0)
    frames, error = read_all(camera)
    assert "cable" in error
    assert len(frames) > 15
    assert (np.diff([f.seq for f in frames]) > 0).all()
    steps = np.diff([f.t for f in frames]) / MS
    assert (steps > 0).all()
    assert np.median(steps) == pytest.approx(1000 / 30, rel=0.25)
    last = frames[-1]
    assert (last.rgb[0, 0, 1:] == [0, 200]).all()
    assert last.depth is not None
    assert last.depth[2, 40] == pytest.approx(0.5)
    near = np.nonzero(np.abs(last.depth - 0.3) < 1e-3)
    assert near[1].mean() == pytest.approx(31.5 + 60 * 0.015 / 0.3, abs=0.8)  # moved to where colour sees it
    known = Calibration("d435", camera.intrinsics, np.eye(4)).over(calibration)  # pyright: ignore[reportAttributeAccessIssue]
    space = Workspace(np.array([-1.0, -1.0, 0.2]), np.array([1.0, 1.0, 0.4]))
    cloud = CloudSensor({"d435": known}, space, 32).points({"d435": last.depth})
    assert np.abs(cloud[:, 2] - 0.3).max() < 1e-3
    assert np.abs(cloud.mean(axis=0)[0] - 0.015) < 0.006


def test_a_realsense_that_is_not_there_says_so():
    pytest.importorskip("pyrealsense2", exc_type=ImportError)
    camera, _ = build_camera({"type": "realsense", "name": "d435", "serial": "000000"})
    with pytest.raises(DeviceError, match="connected: none"):
        camera.start()
    with pytest.raises(ConfigError, match="no recording"):
        build_camera({"type": "realsense", "name": "d435", "recording": "nothing.db3"})
