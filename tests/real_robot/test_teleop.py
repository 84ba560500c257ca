"""A hand leads a robot without a jump, whatever it does; devices say what their own libraries' structures say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, DataError
from real_robot.core.kinematics import Kinematics
from real_robot.core.types import SECOND, Button, DeviceError, State, TeleopSample
from real_robot.teleop.build import build_teleop
from real_robot.teleop.cartesian import Cartesian, pose
from real_robot.teleop.clutch import Alignment, Clutch
from real_robot.teleop.device import LONGEST_STEP, Device, Hand
from real_robot.teleop.devices.gamepad import Gamepad
from real_robot.teleop.devices.leader import Leader
from real_robot.teleop.devices.scripted import Scripted
from real_robot.teleop.devices.spacemouse import SpaceMouse
from tests.real_robot.small_arm import small_arm

TICK = SECOND // 80


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return small_arm(tmp_path_factory.mktemp("arm"))


def state(spec):
    return State(SECOND, 1.0, spec.home.copy(), np.zeros(spec.n))


# the clutch


@given(
    values=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=60), after=st.sampled_from([0, 0.03])
)
def test_the_clutch_changes_only_where_a_threshold_was_passed_for_long_enough(values, after):
    clutch = Clutch(0.6, 0.4, engage_after=after, release_after=after)
    was, ticks = False, int(after * 80)
    for i, value in enumerate(values):
        now = clutch.update(value, i * TICK)
        recent = values[max(0, i - ticks) : i + 1]
        if now and not was:
            assert len(recent) > ticks
            assert all(v >= 0.6 for v in recent)
        if was and not now:
            assert np.isnan(value) or all(v < 0.4 for v in recent)
        was = now


def test_a_trembling_hand_changes_nothing():
    clutch = Clutch(0.6, 0.4, engage_after=0.0)
    changes, was = 0, False
    for i in range(400):
        now = clutch.update(0.5 + 0.09 * np.sin(i) + (0.1 if i > 200 else 0), i * TICK)
        changes += now != was
        was = now
    assert changes == 1


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="release < engage"):
        Clutch(0.3, 0.5)


# no jump


class Joystick(Device):
    """A hand that says whatever a test wants: joints, a pose or a twist."""

    def __init__(self, spec, kind):
        super().__init__(spec, Clutch(engage_after=0.0))
        self.kind, self.hand = kind, Hand(0.0)
        self.cartesian = Cartesian(spec)

    def poll(self, now):
        return self.hand

    def begin(self, target, motion):
        if self.kind == "pose":
            self.cartesian.begin(target, motion)
        elif self.kind == "twist":
            self.cartesian.begin(target)

    def follow(self, motion, last, dt):
        if self.kind == "pose":
            return self.cartesian.by_hand(motion, last, dt)
        return self.cartesian.by_twist(motion, last, dt) if self.kind == "twist" else motion


wild = st.one_of(st.floats(-3, 3), st.sampled_from([np.nan, np.inf, -np.inf, 1e9]))
acts = st.sampled_from(["", "", "", "anchor", "release"])
step = st.tuples(st.floats(0, 1), st.lists(wild, min_size=7, max_size=7), acts, st.integers(1, 400), st.booleans())


@pytest.mark.parametrize("kind", ["joints", "pose", "twist"])
@given(steps=st.lists(step, min_size=1, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_jump_at_any_engage_or_release(spec, kind, steps, seed):
    """Targets start at the robot's, move no faster than it may, and end at the robot's: with any hand."""
    device, now = Joystick(spec, kind), SECOND
    rng = np.random.default_rng(seed)
    robot = spec.home + rng.normal(size=spec.n)  # may be outside its limits
    last = None
    for grip, numbers, act, millis, follows in steps:
        motion = np.array(numbers)
        if kind == "pose":
            motion = np.eye(4)
            motion[:3, 3] = numbers[:3]
            motion[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        device.hand = Hand(grip, motion[:6] if kind == "twist" else motion)
        if act:
            getattr(device, act)()
            last = None
        now += millis * SECOND // 1000
        sample = device.read(state(spec), robot, now)
        assert np.isfinite(sample.target).all()
        if not sample.engaged:
            assert (sample.target == robot).all()
            last = None
        elif last is None:
            assert (sample.target == robot).all()
            last = sample.target
        else:
            dt = min(millis / 1000, LONGEST_STEP)
            assert (np.abs(sample.target - last) <= spec.velocity * dt + 1e-9).all()
            assert (sample.target >= np.minimum(spec.lower, last) - 1e-12).all()
            assert (sample.target <= np.maximum(spec.upper, last) + 1e-12).all()
            last = sample.target
        if follows:
            robot = sample.target.copy()


# space


@pytest.mark.parametrize("joints", [5, 6])
def test_a_twist_moves_the_tool_as_fast_as_it_says(tmp_path, joints):
    spec = small_arm(tmp_path, joints)
    kinematics, cartesian = Kinematics(spec), Cartesian(spec, linear=0.1)
    for axis in range(3):
        twist = np.zeros(6)
        twist[axis] = 1.0
        q = spec.home.copy()
        cartesian.begin(q)
        start = kinematics.forward(q)
        for _ in range(40):
            q = cartesian.by_twist(twist, q, 1 / 80)
        moved = start[:3, :3].T @ (kinematics.position(q) - start[:3, 3])
        assert moved[axis] == pytest.approx(0.05, abs=0.006)
        if joints == 6:
            assert np.abs(np.delete(moved, axis)).max() < 2e-3
            assert np.abs(kinematics.forward(q)[:3, :3] - start[:3, :3]).max() < 0.02


def test_the_tool_goes_where_the_hand_goes_and_turns_as_it_turns(spec):
    kinematics, cartesian = Kinematics(spec), Cartesian(spec)
    q = spec.home.copy()
    start, hand = kinematics.forward(q), pose([1, 2, 3], [1, 0, 0, 0])
    cartesian.begin(q, hand)
    moved = pose([1.04, 2.03, 2.95], [np.cos(0.1), 0, np.sin(0.1), 0])
    for _ in range(80):
        q = cartesian.by_hand(moved, q, 1 / 80)
    end = kinematics.forward(q)
    assert end[:3, 3] - start[:3, 3] == pytest.approx([0.04, 0.03, -0.05], abs=1e-3)
    assert end[:3, :3] @ start[:3, :3].T == pytest.approx(moved[:3, :3], abs=1e-2)
    with pytest.raises(ValueError, match="not a pose"):
        pose([0, 0, np.nan], [1, 0, 0, 0])
    with pytest.raises(ValueError, match="not a pose"):
        pose([0, 0, 0], [0, 0, 0, 0])


def test_at_a_limit_the_wish_does_not_run_away(spec):
    kinematics, cartesian = Kinematics(spec), Cartesian(spec, linear=0.3)
    q = spec.home.copy()
    cartesian.begin(q)
    for _ in range(400):  # far out of reach
        q = cartesian.by_twist(np.array([1.0, 0, 0, 0, 0, 0]), q, 1 / 80)
    out = kinematics.position(q)
    for _ in range(30):
        q = cartesian.by_twist(np.array([-1.0, 0, 0, 0, 0, 0]), q, 1 / 80)
    assert np.linalg.norm(kinematics.position(q) - out) > 0.03  # comes back at once


# a leader


class Arm:
    def __init__(self, q):
        self.q = np.array(q, np.float64)

    def read_joints(self):
        return self.q


def test_a_leader_engages_only_where_it_stands_as_the_robot_does(spec):
    arm = Arm(spec.home)
    arm.q[2] += 0.4
    arm.q[6] = 0.9
    leader = Leader(spec, arm)
    robot = spec.home.copy()
    for i in range(20):
        assert not leader.read(state(spec), robot, i * TICK).engaged
    assert leader.misaligned == "j2 +0.40 rad, gripper +0.40 of its opening"
    arm.q[2] = spec.home[2] + 0.08
    arm.q[6] = spec.home[6] + 0.2
    samples = [leader.read(state(spec), robot, (20 + i) * TICK) for i in range(200)]
    first = next(s for s in samples if s.engaged)
    assert (first.target == robot).all()
    assert samples[-1].target == pytest.approx(arm.q)  # the rest has melted
    assert np.abs(np.diff([s.target[2] for s in samples])).max() < 0.08 / 70
    arm.q[0] = np.nan
    assert not leader.read(state(spec), robot, 300 * TICK).engaged


def test_a_leader_of_another_make_is_mapped(spec):
    arm = Arm([10, 20, 30, 40, 50, 60, 70, 80])
    index, sign, scale = [7, 5, 4, 3, 2, 1, 0], [1, -1, 1, 1, 1, 1, 1], [0.01] * 7
    leader = Leader(spec, arm, index=index, sign=sign, scale=scale, offset=[0.5, 0, 0, 0, 0, 0, 0])
    assert leader.joints() == pytest.approx([1.3, -0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    with pytest.raises(ConfigError, match="expected 1 and -1"):
        Leader(spec, arm, sign=[2] * 7)
    with pytest.raises(ConfigError, match="joint 9 of an arm that has 8"):
        Leader(spec, arm, index=[9] * 7).joints()
    assert Alignment(spec).off(np.full(7, np.nan), spec.home).count("nan") == 7


# devices


def drive(device, robot, n, now=SECOND):
    for i in range(n):
        sample = device.read(state(device.spec), robot, now + i * TICK)
        robot = sample.target
    return sample, now + n * TICK


def test_gamepad_speaks_evdev(spec):
    ecodes = pytest.importorskip("evdev").ecodes
    from evdev import InputEvent

    def event(kind, code, value):
        return InputEvent(0, 0, kind, code, value)

    pad = Gamepad(spec, Cartesian(spec, linear=0.1))
    queue: list = []
    pad.poll = lambda now: pad.translate([queue.pop(0) for _ in range(len(queue))])
    kinematics, robot = Kinematics(spec), spec.home.copy()
    start = kinematics.forward(robot)
    queue += [event(ecodes.EV_ABS, ecodes.ABS_Y, -32768)]
    sample, now = drive(pad, robot, 5)
    assert not sample.engaged
    queue += [event(ecodes.EV_KEY, ecodes.BTN_TR, 1), event(ecodes.EV_KEY, ecodes.BTN_TL, 1)]
    assert pad.read(state(spec), robot, now).buttons is Button.ENABLE
    sample, now = drive(pad, robot, 41, now + TICK)
    assert sample.engaged
    moved = start[:3, :3].T @ (kinematics.position(sample.target) - start[:3, 3])
    assert moved == pytest.approx([0.05, 0, 0], abs=4e-3)
    queue += [event(ecodes.EV_ABS, ecodes.ABS_Y, 3000), event(ecodes.EV_KEY, ecodes.BTN_SOUTH, 1)]  # in the dead zone
    robot = sample.target
    sample, now = drive(pad, robot, 60, now)
    assert kinematics.position(sample.target) == pytest.approx(kinematics.position(robot), abs=2e-3)
    assert sample.target[6] == pytest.approx(0.0 if robot[6] >= 0.5 else 1.0)
    queue += [event(ecodes.EV_KEY, ecodes.BTN_TR, 0), event(ecodes.EV_KEY, ecodes.BTN_TL, 0)]
    sample = pad.read(state(spec), robot, now)
    assert (sample.engaged, sample.buttons) == (False, Button.DISABLE)
    codes = [ecodes.BTN_START, ecodes.BTN_NORTH, ecodes.BTN_START, ecodes.BTN_EAST]
    wanted = [Button.START, Button.SUCCESS, Button.STOP, Button.ESTOP]
    for code, button in zip(codes, wanted, strict=True):
        assert pad.translate([event(ecodes.EV_KEY, code, 1), event(ecodes.EV_KEY, code, 0)]).buttons is button


def test_spacemouse_speaks_its_reports(spec):
    """Raw reports of a SpaceMouse Compact, decoded by pyspacemouse itself."""
    pyspacemouse = pytest.importorskip("pyspacemouse")
    reports: list[bytes] = []

    class Hid:
        def read(self, size, timeout=None):
            return reports.pop(0) if reports else b""

    info = pyspacemouse.get_device_specs()["SpaceMouseCompact"]
    mouse = SpaceMouse(spec, Cartesian(spec, linear=0.1))
    mouse.mouse = pyspacemouse.SpaceMouseDevice(info, Hid())
    kinematics, robot = Kinematics(spec), spec.home.copy()
    start = kinematics.forward(robot)

    def axes(channel, *values):
        return bytes([channel]) + b"".join(int(v).to_bytes(2, "little", signed=True) for v in values)

    def push(*values):
        reports.extend([axes(1, *values), axes(2, 0, 0, 0)])

    push(10, 10, 0)  # a touch
    sample, now = drive(mouse, robot, 10)
    assert not sample.engaged
    push(0, -350, 0)  # away from the person, as the cap counts
    for _ in range(5):
        sample, now = drive(mouse, robot, 1, now)
    robot = sample.target
    assert sample.engaged
    sample, now = drive(mouse, robot, 40, now)
    moved = start[:3, :3].T @ (kinematics.position(sample.target) - start[:3, 3])
    assert moved[0] > 0.04
    assert np.abs(moved[1:]).max() < 4e-3
    push(0, 0, 0)
    sample, now = drive(mouse, robot, 12, now)
    assert not sample.engaged
    reports.append(bytes([3, 2, 0]))
    assert mouse.read(state(spec), robot, now).buttons is Button.ENABLE
    reports.extend([bytes([3, 0, 0]), bytes([3, 2, 0])])
    assert mouse.read(state(spec), robot, now).buttons is Button.DISABLE


def test_a_script_is_played_and_its_buttons_are_not_lost(spec, tmp_path):
    t = np.arange(5) * 0.1
    target = np.tile(spec.home, (5, 1))
    target[2:, 0] += 0.2
    buttons = np.array([Button.ENABLE, Button.START, 0, 0, Button.STOP | Button.SUCCESS])
    np.savez(tmp_path / "hand.npz", t=t, engaged=[False, True, True, True, False], target=target, buttons=buttons)
    script = Scripted.load(spec, tmp_path / "hand.npz")
    samples = [script.read(state(spec), spec.home, SECOND + i * TICK) for i in range(50)]
    assert np.bitwise_or.reduce([int(s.buttons) for s in samples]) == 1 | 16 | 32 | 64
    assert sum(s.engaged for s in samples) == pytest.approx(24, abs=1)
    assert max(s.target[0] for s in samples) == pytest.approx(spec.home[0] + 0.2)
    assert script.done
    assert not samples[-1].engaged
    (tmp_path / "other.npz").write_bytes(b"none")
    with pytest.raises(DataError, match="is no script"):
        Scripted.load(spec, tmp_path / "other.npz")
    with pytest.raises(ConfigError, match="sample 0 has no target"):
        Scripted(spec, [TeleopSample(0, True, np.zeros(3))])


# from options


def test_options_that_cannot_be_are_named(spec, tmp_path):
    def refused(match, options, robot=spec, kind=ConfigError):
        with pytest.raises(kind, match=match):
            build_teleop(options, robot)

    refused("Unknown teleop.device 'keybord'. Did you mean 'keyboard'", {"device": "keybord"})
    refused("no option 'linaer'. Did you mean 'linear'", {"device": "gamepad", "linaer": 1})
    refused("no option 'linear'", {"device": "keyboard", "mode": "joints", "linear": 1})
    refused("linear must be positive", {"device": "spacemouse", "linear": -1})
    refused("needs teleop.path", {"device": "scripted"})
    refused("needs an arm", {"device": "leader"})
    refused("mode must be", {"device": "keyboard", "mode": "cartesian"})
    refused("belong together", {"device": "browser", "https": True, "key": "k"})
    refused("no use without", {"device": "browser", "certificate": "c", "key": "k"})
    fields = {f: getattr(spec, f) for f in spec.__dataclass_fields__} | {"model": None}
    bare = type(spec)(**fields)
    refused("has no model", {"device": "gamepad"}, bare)
    assert build_teleop({"device": "keyboard", "mode": "joints"}, bare)


def test_absent_devices_say_what_to_look_at(spec, tmp_path):
    with pytest.raises(DeviceError, match="run in a terminal"):
        build_teleop({"device": "keyboard", "tty": str(tmp_path / "none")}, spec).start()
    pytest.importorskip("evdev")
    with pytest.raises(DeviceError, match="/dev/input/none cannot be opened"):
        build_teleop({"device": "gamepad", "path": "/dev/input/none"}, spec).start()
    pytest.importorskip("pyspacemouse")
    with pytest.raises(DeviceError, match="libhidapi"):
        build_teleop({"device": "spacemouse", "name": "none"}, spec).start()
