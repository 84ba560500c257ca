"""The teleop process with real terminals, real connections and real deaths."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from real_robot.control.machine import Machine
from real_robot.core.kinematics import Kinematics
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Button
from real_robot.teleop.process import run
from tests.real_robot.small_arm import control, small_arm

MACHINE = tuple(m.name for m in Machine)
_ENDS = Button.DISABLE | Button.ESTOP
FORK = mp.get_context("fork")


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.01)
    return found


class Robot:
    """A session with a robot in it, and a teleop process that can be killed."""

    def __init__(self, spec, options, arm=None, camera=False):
        self.spec, self.session = spec, Session()
        self.kinematics = Kinematics(spec)
        self._seen, self._pressed, self._enabled = 0, [], False
        given = (str(self.session.folder), spec, options)
        self.make = lambda: FORK.Process(target=run, args=given, kwargs={"arm": arm, "machine": MACHINE})
        self.robot = FORK.Process(target=control, args=(str(self.session.folder), spec, camera))
        self.robot.start()
        until(lambda: self.session.has("command"))
        self.teleop = self.make()
        self.teleop.start()

    def newest(self, ring):
        record = self.session.attach(ring).latest() if self.session.has(ring) else None
        return None if record is None else record.data

    def q(self):
        return self.newest("state")["q"]

    def buttons(self):
        """All that were pressed; repeats of ENABLE left out."""
        if not self.session.has("teleop"):
            return []
        records, missed = self.session.attach("teleop").since(self._seen)
        self._seen += missed + len(records)
        for pressed in (Button(int(r.data["buttons"])) for r in records):
            new = pressed & ~Button.ENABLE if self._enabled else pressed
            if new:
                self._pressed.append(new)
            self._enabled = (self._enabled or Button.ENABLE in pressed) and not pressed & _ENDS
        return self._pressed

    def said(self):
        if not self.session.has("event.teleop"):
            return ""
        return "\n".join(r.data["text"].item().decode() for r in self.session.attach("event.teleop").since(0)[0])

    def engaged(self):
        sample = self.newest("teleop")
        return sample is not None and bool(sample["engaged"])

    def path(self):
        """Every target of an engaged sample and the robot's way, for jumps."""
        return np.array([r.data["sent"] for r in self.session.attach("command").since(0)[0]])


@contextmanager
def robot(spec, options, arm=None, camera=False):
    made = Robot(spec, options, arm, camera)
    try:
        yield made
    finally:
        made.session.stop()
        for process in (made.teleop, made.robot):
            process.join(10)
            if process.is_alive():
                process.kill()
        made.session.close()


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return small_arm(tmp_path_factory.mktemp("arm"))


@pytest.fixture
def terminal():
    """(write end, name of the terminal)."""
    leader, follower = pty.openpty()
    yield leader, os.ttyname(follower)
    for fd in (leader, follower):
        with suppress(OSError):
            os.close(fd)


def local_modes(name):
    fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
    try:
        return termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO)
    finally:
        os.close(fd)


def test_keyboard_over_a_terminal(spec, terminal):
    keys, name = terminal
    cooked = local_modes(name)
    assert cooked
    with robot(spec, {"device": "keyboard", "tty": name, "linear": 0.1}) as r:
        until(lambda: "e enable/disable" in r.said())
        assert not local_modes(name)
        start = r.kinematics.forward(r.q())

        def hold(key, condition):
            def press():
                os.write(keys, key)
                time.sleep(0.03)
                return condition()

            until(press)

        hold(b"w", r.engaged)
        time.sleep(0.2)
        assert (r.q() == spec.home).all()  # not enabled
        until(lambda: not r.engaged())
        os.write(keys, b"e\r")
        until(r.buttons)
        assert r.buttons()[:1] == [Button.ENABLE | Button.START]
        forward = lambda: (start[:3, :3].T @ (r.kinematics.position(r.q()) - start[:3, 3]))[0]  # noqa: E731
        hold(b"w", lambda: forward() > 0.02)
        until(lambda: not r.engaged())  # nobody repeats the key
        stands = r.q()
        time.sleep(0.2)
        assert (r.q() == stands).all()
        assert np.abs(np.diff(r.path(), axis=0)).max() < 3.0 * 0.2  # the robot's speed, and a slow machine's pause
        was = r.q()[6]
        os.write(keys, b"g")  # one press moves the gripper all the way
        until(lambda: abs(r.q()[6] - (1.0 if was < 0.5 else 0.0)) < 0.01)
        os.write(keys, b"1 ")
        until(lambda: any(Button.ESTOP in b for b in r.buttons()))
        assert any(Button.SUCCESS in b for b in r.buttons())
    until(lambda: local_modes(name) == cooked)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_terminal_is_restored_whatever_ends_the_process(spec, terminal, end):
    keys, name = terminal
    cooked = local_modes(name)
    with robot(spec, {"device": "keyboard", "tty": name}) as r:
        until(lambda: not local_modes(name))
        os.write(keys, b"e")
        until(lambda: Button.ENABLE in r.buttons())
        os.kill(r.teleop.pid, end)
        r.teleop.join(10)
        until(lambda: local_modes(name) == cooked)
        if end == signal.SIGTERM:
            assert r.buttons()[-1] is Button.DISABLE
            return
        assert r.buttons()[-1] is Button.ENABLE
        r.teleop = r.make()
        r.teleop.start()
        until(lambda: r.buttons()[-1] is Button.DISABLE)  # what was held is not held any more


TERMINAL = """
import os, pty, sys
leader, follower = pty.openpty()
print(os.ttyname(follower), flush=True)
os.write(leader, sys.stdin.readline().encode())
sys.stdin.readline()
"""


def test_a_terminal_that_goes_releases_the_robot(spec):
    window = subprocess.Popen(
        [sys.executable, "-c", TERMINAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert window.stdin
    assert window.stdout
    name = window.stdout.readline().strip()
    with robot(spec, {"device": "keyboard", "tty": name}) as r:
        until(lambda: not local_modes(name))
        window.stdin.write("e\n")
        window.stdin.flush()
        until(r.buttons)
        window.kill()
        window.wait()
        until(lambda: r.buttons()[-1] is Button.DISABLE)
        until(lambda: "trying again" in r.said())
        assert r.teleop.is_alive()


class Puppet:
    """A leader arm that a file moves."""

    def __init__(self, path):
        self.path = path

    def read_joints(self):
        return np.array(json.loads(self.path.read_text()))


def pose_leader(path, q):
    path.with_suffix(".new").write_text(json.dumps(list(map(float, q))))
    os.replace(path.with_suffix(".new"), path)


def test_leader_says_how_far_it_is_off_then_leads_then_is_lost(spec, tmp_path, terminal):
    keys, name = terminal
    path = tmp_path / "leader.json"
    off = spec.home.copy()
    off[1] += 0.5
    pose_leader(path, off)
    with robot(spec, {"device": "leader", "tty": name}, arm=lambda: Puppet(path)) as r:
        until(lambda: not local_modes(name))
        os.write(keys, b"ec")
        until(lambda: "off: j1 +0.50 rad" in r.said())
        assert not r.engaged()
        pose_leader(path, spec.home + 0.05)
        time.sleep(0.2)
        assert not r.engaged()  # not by chance, but when asked again
        os.write(keys, b"c")
        until(r.engaged)
        want = spec.home.copy()
        want[:3] += 0.3
        want[6] = 1.0
        pose_leader(path, want)
        until(lambda: np.allclose(r.q(), want, atol=0.01))
        path.unlink()  # pulled out
        until(lambda: r.buttons()[-1] is Button.DISABLE)
        assert not r.engaged()
        until(lambda: "trying again" in r.said())
        pose_leader(path, want + 0.6)
        time.sleep(1.5)
        assert r.q() == pytest.approx(want, abs=0.01)  # back, but not in the hand


def test_a_silent_robot_is_not_led_but_buttons_get_through(spec, terminal):
    keys, name = terminal
    with robot(spec, {"device": "keyboard", "tty": name, "mode": "joints", "hold": 1.0}) as r:
        until(lambda: not local_modes(name))
        os.write(keys, b"eq")
        until(r.engaged)
        os.kill(r.robot.pid, signal.SIGSTOP)
        until(lambda: (os.write(keys, b"q"), not r.engaged())[1])
        until(lambda: time.monotonic_ns() - r.session.attach("state").latest().t > SECOND)
        os.write(keys, b"q ")
        until(lambda: r.buttons()[-1] is Button.ESTOP)
        assert not r.engaged()
        os.kill(r.robot.pid, signal.SIGCONT)


def test_options_that_cannot_be_end_the_process_with_a_reason(spec):
    with robot(spec, {"device": "gamepad", "speed": 1}) as r:
        r.teleop.join(20)
        assert r.teleop.exitcode == 1
        assert "no option 'speed'" in r.said()


# the page's server, spoken to as the page does


@contextmanager
def page(r):
    connect = pytest.importorskip("websockets.sync.client").connect
    until(lambda: "teleoperation page: " in r.said())
    url = r.said().split("teleoperation page: ")[1].split()[0]
    with connect(url.replace("http", "ws") + "ws", compression=None, close_timeout=0.2) as socket:
        yield socket, url


def hear(socket, kind, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = socket.recv(timeout=seconds)
        if isinstance(message, bytes):
            if kind == "picture":
                return message
        elif json.loads(message)["type"] == kind:
            return json.loads(message)
    raise AssertionError(f"no {kind}")


def say(socket, **message):
    socket.send(json.dumps(message))


BROWSER = {"device": "browser", "port": 0, "lost_after": 1.0}


def test_page_hand_leads_and_a_lost_page_releases_at_once(spec):
    with robot(spec, BROWSER, camera=True) as r, page(r) as (socket, _):
        hello = hear(socket, "hello")
        assert (hello["lead"], hello["joints"], len(hello["geoms"])) == (True, list(spec.joints), 7)
        picture = hear(socket, "picture")
        assert picture[1:3] == b"\xff\xd8"
        tool = hear(socket, "scene")["goal"]["tool"]
        start = r.kinematics.position(r.q())
        say(socket, type="press", button="ENABLE")
        say(socket, type="press", button="START")
        for i in range(100):
            p = [tool["p"][0], tool["p"][1] + 0.05 * min(1, i / 40), tool["p"][2]]
            say(socket, type="hand", grip=1, p=p, q=tool["q"], gripper=None)
            time.sleep(0.02)
        moved = r.kinematics.position(r.q()) - start
        assert moved == pytest.approx([0, 0.05, 0], abs=0.015)
        assert r.engaged()

        def held():
            say(socket, type="hand", grip=1, p=p, q=tool["q"], gripper=None)
            return hear(socket, "scene")["status"].get("source") == "human"

        until(held)
        until(lambda: hear(socket, "scene")["status"]["rates"].get("state", 0) > 5)
        say(socket, type="hand", grip=1, p=tool["p"], q=tool["q"], gripper=1.0)
        until(lambda: (say(socket, type="hand", grip=1, p=p, q=tool["q"], gripper=1.0), r.q()[6] > 0.99)[1])
        socket.close()
        until(lambda: r.buttons()[-1] is Button.DISABLE)
        until(lambda: not r.engaged())
        assert Button.START in r.buttons()[0] | r.buttons()[1]


def test_a_silent_page_is_lost_a_second_page_only_looks_on(spec):
    with robot(spec, BROWSER) as r, page(r) as (first, _), page(r) as (second, _):
        assert hear(first, "hello")["lead"]
        assert not hear(second, "hello")["lead"]
        tool = hear(first, "scene")["goal"]["tool"]
        say(first, type="press", button="ENABLE")
        say(second, type="press", button="START")  # not for onlookers
        say(second, type="hand", grip=1, p=[0, 0, 0], q=tool["q"])
        say(second, type="press", button="STOP")
        say(first, type="hand", grip=1, p=tool["p"], q=tool["q"])
        until(r.engaged)
        for _ in range(300):  # the first page freezes, the second one goes on
            say(second, type="beat", t=1.0)
            time.sleep(0.02)
            if Button.DISABLE in r.buttons():
                break
        assert Button.DISABLE in r.buttons()
        until(lambda: not r.engaged())
        assert not any(Button.START in b for b in r.buttons())
        assert any(Button.STOP in b for b in r.buttons())
        assert hear(second, "hello")["lead"]  # its turn
        for nonsense in (
            "{",
            "[]",
            '{"type": "hand", "grip": 1, "p": [1], "q": []}',
            '{"type": "press"}',
        ):
            second.send(nonsense)
        say(second, type="hand", grip=1, p=[float("nan")] * 3, q=tool["q"])
        say(second, type="hand", grip=float("nan"), p=tool["p"], q=tool["q"])
        time.sleep(0.3)
        assert not r.engaged()
        say(second, type="press", button="ESTOP")
        until(lambda: r.buttons()[-1] is Button.ESTOP)


def test_nothing_without_the_token(spec, tmp_path, monkeypatch):
    import ssl
    import urllib.error
    import urllib.request

    from real_robot.teleop.browser import certificate

    monkeypatch.setattr(certificate, "FOLDER", tmp_path)
    trusting = ssl._create_unverified_context()
    with robot(spec, {**BROWSER, "https": True}) as r, suppress(ssl.SSLError):
        until(lambda: "teleoperation page: " in r.said())
        url = r.said().split("teleoperation page: ")[1].split()[0]
        assert url.startswith("https://127.0.0.1:")

        def get(address):
            with urllib.request.urlopen(address, context=trusting, timeout=20) as answer:
                return answer.read().decode()

        assert "E-STOP" in get(url)
        assert "import" in get(url + "page.js")
        for wrong, code in ((url[:-2] + "/", 403), (url + "../server.py", 404), (url + "page.py", 404)):
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                get(wrong)
