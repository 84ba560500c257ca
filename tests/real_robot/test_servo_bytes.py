"""Ticks, units, bytes: the drivers' sums, and the simulators' packets as the makers' SDKs see them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from real_robot.core.options import options
from real_robot.robots.feetech import from_sign_magnitude, to_sign_magnitude
from real_robot.robots.servo_calibration import TICK, TURN, Calibration, JointCalibration, measured_joint
from real_robot.robots.servo_port import ServoPort
from real_robot.simulators import dynamixel as dynamixel_simulator
from tests.real_robot.buses import bus

joint = st.builds(
    lambda id, sign, low, span, zero, homing: JointCalibration(id, sign, low + zero * span, low, low + span, homing),
    st.just(1),
    st.sampled_from([-1, 1]),
    st.integers(-4000, 4000),
    st.integers(20, TURN - 1),
    st.floats(-1, 2),
    st.integers(-2047, 2047),
)


def arm(a: JointCalibration, b: JointCalibration) -> Calibration:
    """Of two, the second a gripper."""
    zero = b.low if b.sign > 0 else b.high
    return Calibration("x", {"a": a, "grip": JointCalibration(2, b.sign, zero, b.low, b.high, b.homing)})


@given(a=joint, b=joint, at=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_positions_become_ticks_and_come_back(a, b, at):
    calibration = arm(a, b)
    lower, upper = calibration.limits
    assert lower[1] == pytest.approx(0)
    assert upper[1] == pytest.approx(1)
    q = lower + np.array(at) * (upper - lower)
    ticks = calibration.ticks(q)
    assert (np.abs(calibration.position(ticks) - q) <= 0.5 * np.abs(calibration.scale) + 1e-9).all()
    beyond = calibration.ticks(q + 1e6 * np.sign(calibration.scale))
    assert (calibration.beyond(beyond) == 0).all()
    for turns in (-2, 0, 1):
        shown = ticks + turns * TURN
        moved = shown + calibration.nearest_turn(shown)
        assert (
            np.abs(calibration.position(moved) - calibration.position(ticks))[calibration.beyond(ticks) == 0].max()
            < 1e-6
        )


@pytest.mark.parametrize("bad", [np.array([np.nan, 0]), np.array([np.inf, 0]), np.array([0.0]), np.zeros(3)])
def test_what_is_not_finite_or_has_another_length_has_no_ticks(bad):
    calibration = arm(JointCalibration(1, 1, 2048, 0, 4000), JointCalibration(2, 1, 0, 0, 1000))
    with pytest.raises(ValueError, match="expected 2 finite"):
        calibration.ticks(bad)


@given(a=joint, b=joint)
@settings(max_examples=20)
def test_a_calibration_is_what_was_saved(tmp_path_factory, a, b):
    path = tmp_path_factory.mktemp("c") / "arm.json"
    calibration = arm(a, b)
    calibration.save(path)
    assert Calibration.load(path) == calibration


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1, "robot": "x", "joints": {"a": {"id": 1}}}'])
def test_bad_calibrations_are_refused(tmp_path, text):
    (tmp_path / "arm.json").write_text(text)
    with pytest.raises(ConfigError, match=r"arm\.json"):
        Calibration.load(tmp_path / "arm.json")
    with pytest.raises(ConfigError, match="calibrate port="):
        Calibration.load(tmp_path / "none.json")


def test_zero_is_put_where_both_ends_fit():
    found = measured_joint(1, 1000, 3000, (-1.0, 1.5), sign=-1)
    calibration = Calibration("x", {"a": found}, gripper=False)
    lower, upper = calibration.limits
    assert (lower + upper) / 2 == pytest.approx([0.25])
    assert upper - lower == pytest.approx([2000 * TICK])


@given(st.integers(-2047, 2047), st.sampled_from([11, 15]))
def test_sign_and_magnitude(value, bit):
    assert from_sign_magnitude(to_sign_magnitude(value, bit), bit) == value


@given(data=st.binary(min_size=1, max_size=40))
def test_checksums_and_stuffing_are_the_sdks(data):
    sdk = pytest.importorskip("dynamixel_sdk", reason="pip install 'deft[dynamixel]'")
    handler = sdk.PacketHandler(2.0)
    assert dynamixel_simulator.crc(data) == handler.updateCRC(0, list(data), len(data))
    packet = list(dynamixel_simulator.status(3, 0, data))
    assert bytes(handler.removeStuffing(packet)[9 : 9 + len(data)]) == data


def test_options():
    known = {"port": "", "ids": (1, 2), "drop": 0.0, "on": True}
    assert options(["ids=3,4", "drop=0.5", "on=false"], known) == {"port": "", "ids": (3, 4), "drop": 0.5, "on": False}
    for wrong in ("prot=x", "port", "drop=much", "on=maybe"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            options([wrong], known)


def test_feetechs_sdk_alone(tmp_path):
    """No code of the driver's in between: its port handler, its groups."""
    sdk = pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
    with bus("feetech", tmp_path) as s:
        port, packets = sdk.PortHandler(s.port), sdk.PacketHandler(0)
        assert port.openPort()
        assert packets.ping(port, 3) == (777, sdk.COMM_SUCCESS, 0)
        assert packets.ping(port, 9)[1] == sdk.COMM_RX_TIMEOUT
        read = sdk.GroupSyncRead(port, packets, 56, 4)
        write = sdk.GroupSyncWrite(port, packets, 42, 2)
        for id in range(1, 7):
            assert read.addParam(id)
            assert packets.write1ByteTxRx(port, id, 40, 1)[0] == sdk.COMM_SUCCESS
            assert write.addParam(id, [0x00, 0x08])
        assert write.txPacket() == sdk.COMM_SUCCESS
        time.sleep(1.0)
        assert read.txRxPacket() == sdk.COMM_SUCCESS
        assert [read.getData(id, 56, 2) for id in range(1, 7)] == pytest.approx([2048] * 6, abs=2)
        port.ser.write(bytes([0xFF, 0xFF, 0xFE, 2, 1, 0xFE]))  # to all: who is there?
        time.sleep(0.2)
        assert sorted(port.ser.read(200)[2::6]) == [1, 2, 3, 4, 5, 6]
        port.closePort()


def test_dynamixels_sdk_alone(tmp_path):
    sdk = pytest.importorskip("dynamixel_sdk", reason="pip install 'deft[dynamixel]'")
    with bus("dynamixel", tmp_path) as s:
        port, packets = sdk.PortHandler(s.port), sdk.PacketHandler(2.0)
        assert port.openPort()
        found, result = packets.broadcastPing(port)
        assert result == sdk.COMM_SUCCESS
        assert sorted(found) == [1, 2, 3, 4, 5, 6]
        awkward = 0x00FDFFFF  # holds the header: stuffed on its way
        assert packets.write1ByteTxRx(port, 2, 11, 4) == (sdk.COMM_SUCCESS, 0)
        assert packets.write4ByteTxRx(port, 2, 116, awkward) == (sdk.COMM_SUCCESS, 0)
        assert packets.read4ByteTxRx(port, 2, 116) == (awkward, sdk.COMM_SUCCESS, 0)
        read = sdk.GroupSyncRead(port, packets, 132, 4)
        for id in range(1, 7):
            assert read.addParam(id)
        assert read.txRxPacket() == sdk.COMM_SUCCESS
        assert read.getData(1, 132, 4) == pytest.approx(2048, abs=3)
        port.closePort()


def test_a_port_that_babbles_does_not_hold_the_loop_up():
    """Feetech's SDK looks for a header without looking at the clock."""
    sdk = pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
    import os
    import tty

    master, slave = os.openpty()
    tty.setraw(slave)
    port = ServoPort(os.ttyname(slave), 1_000_000, 0.02)
    port.open()
    ended = threading.Event()

    def babble() -> None:
        while not ended.is_set():
            os.write(master, b"\x01" * 200)

    thread = threading.Thread(target=babble)
    thread.start()
    try:
        port.setPacketTimeout(0)
        with pytest.raises(TimeoutError, match="no end"):
            sdk.PacketHandler(0).rxPacket(port)
    finally:
        ended.set()
        port.clearPort()
        thread.join(5)
        port.close()
        os.close(master)
        os.close(slave)
