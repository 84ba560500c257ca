"""The SO-101 at its table: in place, faster than time, and as simulated servos behind a port."""

from __future__ import annotations

import multiprocessing as mp
from functools import partial

import numpy as np
import pytest

from configs.loader import load_config
from data.errors import ConfigError
from real_robot.control.machine import Machine
from real_robot.core.streams import Session, teleop_dtype
from real_robot.core.types import Button, DeviceError
from real_robot.env import RobotEnv
from real_robot.parts import last_gasp_of, parts_of, spec_of
from real_robot.robots.build import build_robot
from real_robot.robots.servo_calibration import Calibration
from real_robot.robots.so101 import IDS, MODEL
from real_robot.robots.spec import spec_from_model
from real_robot.simulators.feetech import run
from real_robot.simulators.hand import Hand, Pick
from real_robot.simulators.lab import Lab
from real_robot.simulators.port import ask
from real_robot.simulators.servo_bus import terminal


def led_by_hand(lab: Lab, hand: Hand, seconds: float, each=lambda now: None) -> None:
    """The scripted hand at the lab's robot until it has had enough."""
    ring, pressed = lab.session.create("teleop", teleop_dtype(lab.spec.n), 64), Button.NONE

    def lead(now: int) -> None:
        nonlocal pressed
        each(now)
        sample = hand.read(lab.controller.state, lab.controller.follower.q)
        if sample is not None:
            pressed |= sample.buttons
            ring.put(np.array((sample.engaged, sample.target, int(sample.buttons)), ring.dtype), sample.t)

    lab.clock.advance(lab.spec.dt)
    hand.start()
    lab.each.append(lead)
    while not pressed & Button.QUIT:
        lab.clock.advance(1.0)
        seconds -= 1
        assert seconds > 0, "the hand has not come to an end"


def test_the_hand_solves_it():
    env = RobotEnv(robot="so101_mujoco")
    wins = []
    for seed in range(4):
        env.reset(seed)
        result = env.step(env.expert_action())
        while not (result.terminated or result.truncated):
            result = env.step(env.expert_action())
        wins.append(result.success)
        assert env.observe()["agent_pos"].shape == (6,)
    env.close()
    assert np.mean(wins) >= 0.75


@pytest.mark.slow
def test_the_hand_hardly_ever_fails():
    config = load_config("deploy", ["robot=so101_mujoco"])
    lab = Lab(config)
    hand = Hand(lab.spec, lab.session, Pick(lab.spec, **config["hand"]), episodes=20, wait=True)
    led_by_hand(lab, hand, 500)
    lab.close()
    assert np.mean(hand.results) >= 0.9


def test_the_hand_recovers_a_robot_that_was_pushed():
    config = load_config("deploy", ["robot=so101_mujoco"])
    lab = Lab(config)
    hand = Hand(lab.spec, lab.session, Pick(lab.spec, **config["hand"]), episodes=2, wait=True)
    states = set()

    def push(now: int) -> None:
        states.add(lab.controller.machine.state)
        if hand._phase == "task" and not hand.results and hand._pick.q[-1] == 0 and Machine.FAULT not in states:
            lab.robot.world.data.qpos[0] -= 0.8

    led_by_hand(lab, hand, 60, push)
    lab.close()
    assert Machine.FAULT in states
    assert hand.results == [False, True]


def test_the_simulated_arm_has_a_calibration_that_no_real_arm_has():
    calibration, model = Calibration.load("so101_simulated"), spec_from_model("so101", MODEL)
    np.testing.assert_allclose(calibration.limits, [model.lower, model.upper], atol=1e-6)
    assert all(j.homing for j in calibration.joints.values())
    with pytest.raises(ConfigError, match="There is no calibration so101_nowhere"):
        Calibration.load("so101_nowhere")


def test_a_port_has_one_simulator(tmp_path):
    link = str(tmp_path / "arm")
    with terminal(link), pytest.raises(DeviceError, match="does another one run there"), terminal(link):
        pass
    with terminal(link) as (_, path):
        assert path == link
        assert (tmp_path / "arm").is_char_device()
    assert not (tmp_path / "arm").is_symlink()


def test_the_session_of_a_simulated_arm(tmp_path):
    config = load_config("record", ["robot=so101_sim", "robot.port=/tmp/mine", "teleop=hand", f"out={tmp_path}"])
    parts = {part.name: part for part in parts_of(config, spec_of(config))}
    assert list(parts) == ["simulator", "recorder", "sensor cube", "control", "teleop"]
    assert parts["simulator"].options["options"]["link"] == "/tmp/mine"
    assert parts["teleop"].options["teleop"]["offset"] == [0, 0, 0.0155]
    gasp = last_gasp_of(config["robot"])
    assert isinstance(gasp, partial)
    assert gasp.keywords == {"port": "/tmp/mine", "ids": IDS}
    browser = load_config("record", ["robot=so101_sim", f"out={tmp_path}"])
    assert "offset" not in {part.name: part for part in parts_of(browser, spec_of(browser))}["teleop"].options["teleop"]


def test_the_servos_move_the_arm_of_the_world(tmp_path):
    pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
    link, session = str(tmp_path / "arm"), Session()
    process = mp.get_context("spawn").Process(target=run, args=(link,), kwargs={"session": str(session.folder)})
    process.start()
    robot = None
    try:
        while not session.has("world") and process.is_alive():
            process.join(0.05)
        options = {"type": "so101", "port": link, "calibration": "so101_simulated", "control_hz": 19.0}
        robot = build_robot({**options, "read_timeout": 0.05, "max_misses": 30})
        robot.connect()
        world = session.attach("world")
        want = robot.spec.home + np.array([0.3, 0, 0, 0, 0, 0.2])
        ask(session.folder, reset=7)
        for _ in range(200):
            robot.write(want)
            record, q = world.latest(), robot.read().q
            if np.abs(q - want).max() < 0.01 and record.data["seed"] == 7:
                break
            process.join(0.02)
        np.testing.assert_allclose(q, want, atol=0.01)
        np.testing.assert_allclose(record.data["qpos"][:5], want[:5], atol=0.05)
        assert record.data["seed"] == 7
        session.stop()
        robot.stop()  # the arm is there until nobody speaks to it
        robot.close()
        process.join(20)
        assert process.exitcode == 0
    finally:
        if robot is not None and process.is_alive():
            robot.bus.close()
        process.kill()
        session.close()
