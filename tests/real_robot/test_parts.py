"""From a configuration to robots and processes."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from configs.loader import load_config
from data.errors import ConfigError
from real_robot.parts import SIMULATORS, last_gasp_of, parts_of, spec_of
from real_robot.robots.build import ROBOTS, build_robot
from real_robot.robots.servo_calibration import nominal_calibration


@pytest.mark.parametrize("target", ROBOTS.values(), ids=ROBOTS)
def test_every_robot_is_there(target):
    module, _, name = target.partition(":")
    driver = getattr(import_module(module), name)
    for method in ("connect", "read", "write", "stop", "recover", "close"):
        assert callable(getattr(driver, method))


@pytest.mark.parametrize("module", SIMULATORS.values(), ids=SIMULATORS)
def test_every_simulator_takes_a_session(module):
    assert "session" in import_module(module).run.__kwdefaults__


@pytest.fixture
def calibration(tmp_path):
    joints, ids = ("waist", "elbow", "gripper"), [4, 5, 7]
    made = nominal_calibration("x", joints, ids, np.array([[-2.0, 2.0]] * 3), [2048] * 3, [0] * 3, gripper=True)
    made.save(tmp_path / "arm.json")
    return tmp_path / "arm.json"


@pytest.mark.parametrize("kind", ["so101", "dynamixel"])
def test_servo_arms_are_stopped_by_their_calibrations_ids(kind, calibration):
    gasp = last_gasp_of({"type": kind, "port": "/dev/null", "calibration": str(calibration), "control_hz": 100.0})
    assert gasp is not None
    assert gasp.keywords == {"port": "/dev/null", "ids": (4, 5, 7)}  # type: ignore[attr-defined]


def test_arms_that_stop_by_themselves_need_no_gasp():
    assert last_gasp_of({"type": "ur", "host": "127.0.0.1"}) is None


def test_units(calibration):
    robot = build_robot({"type": "dynamixel", "port": "/dev/null", "calibration": str(calibration)})
    assert robot.spec.units == ("rad", "rad", "open")


def test_unknown_robots_are_named():
    with pytest.raises(ConfigError, match="so101"):
        build_robot({"type": "so100"})
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_robot({"type": "nowhere.to:BeFound"})


def test_a_session_has_the_parts_that_are_configured(tmp_path):
    overrides = ["server=ws://there:8000", f"out={tmp_path}", "robot=ur_sim", "teleop=hand"]
    config = load_config("deploy", overrides)
    names = [part.name for part in parts_of(config, spec_of(config))]
    assert names == ["simulator", "recorder", "sensor cube", "control", "teleop", "policy"]
    plain = load_config("deploy", ["checkpoint=x"])
    assert [p.name for p in parts_of(plain, spec_of(plain))] == ["sensor cube", "control", "policy"]


def test_entries_of_ones_own_are_given_on_the_command_line():
    config = load_config("deploy", ["cameras={front:{type:'a:B'}}", "sensors.pose.field=cube", "robot.tcp=tool"])
    assert config["cameras"] == {"front": {"type": "a:B"}}
    assert config["sensors"] == {"cube": {"field": "cube"}, "pose": {"field": "cube"}}
    assert config["robot"]["tcp"] == "tool"
    with pytest.raises(ConfigError, match="nowhere"):
        load_config("deploy", ["nowhere.front=1"])
    with pytest.raises(ConfigError, match="velocity"):  # the driver's own check
        spec_of(load_config("deploy", ["robot.velocitty=1"]))
