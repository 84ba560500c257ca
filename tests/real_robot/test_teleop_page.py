"""The page in a real browser: Chromium without a window, from the npm package that carries one.

    npm install --prefix ~/.cache/deft-chromium @sparticuz/chromium puppeteer-core iwer

DEFT_PAGE_PICTURE=docs/robot/teleop_page.png renews the picture in the docs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from real_robot.core.types import Button
from tests.real_robot.small_arm import small_arm
from tests.real_robot.test_teleop_process import robot, until

PACKAGES = Path(os.environ.get("DEFT_CHROMIUM", Path.home() / ".cache" / "deft-chromium"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="no node"),
    pytest.mark.skipif(
        not (PACKAGES / "node_modules/@sparticuz/chromium").exists(), reason=f"no Chromium in {PACKAGES}"
    ),
]
OPTIONS = {"device": "browser", "port": 0, "lost_after": 4.0}


@contextmanager
def browser(r, scenario, *more):
    """A function that lets the browser go on to its next word, and returns what it says."""
    until(lambda: "teleoperation page: " in r.said())
    url = r.said().split("teleoperation page: ")[1].split()[0]
    command = ["node", str(Path(__file__).with_name("page.mjs")), str(PACKAGES), url, scenario, *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def next_word(word, go_on=True):
            if go_on:
                process.stdin.write("\n")
                process.stdin.flush()
            said = json.loads(process.stdout.readline() or '{"word": "died"}')
            assert said["word"] == word, said
            return said

        try:
            yield next_word
        finally:
            for started in psutil.Process(process.pid).children(recursive=True):  # Chromium outlives its node
                with suppress(psutil.NoSuchProcess):
                    started.kill()
            process.kill()


@pytest.fixture
def spec(tmp_path):
    return small_arm(tmp_path)


def test_a_drag_moves_the_arm_and_buttons_arrive(spec):
    picture = os.environ.get("DEFT_PAGE_PICTURE")
    with robot(spec, OPTIONS, camera=True) as r, browser(r, "mouse", *([picture] if picture else [])) as word:
        start = r.kinematics.forward(r.q())
        said = word("dragged", go_on=False)
        assert said["state"]["hello"]["lead"]
        assert said["pictures"] == 1
        assert r.engaged()
        assert r.newest("command")["source"] == 2
        moved = start[:3, :3].T @ (r.kinematics.position(r.q()) - start[:3, 3])
        assert moved[2] > 0.02  # along the arrow that was dragged
        assert np.abs(moved[:2]).max() < 0.2 * moved[2]
        assert r.kinematics.forward(r.q())[:3, :3] == pytest.approx(start[:3, :3], abs=0.05)
        before = r.kinematics.forward(r.q())
        word("turned")
        after = r.kinematics.forward(r.q())
        assert np.linalg.norm(after[:3, 3] - before[:3, 3]) < 0.01
        turned = before[:3, :3].T @ after[:3, :3]
        assert np.degrees(np.arccos((np.trace(turned) - 1) / 2)) > 8
        assert turned[2, 2] > 0.99  # about z
        word("stopped")
        until(lambda: any(Button.SUCCESS in b for b in r.buttons()))
        assert r.q()[6] > 0.9
        assert not r.engaged()
        word("end")
        pressed = [name for b in r.buttons() for name in (b.name or "").split("|")]
        assert pressed == ["ENABLE", "START", "DISABLE", "STOP", "SUCCESS", "ESTOP"]


def test_a_frozen_page_releases_the_robot(spec):
    with robot(spec, OPTIONS) as r, browser(r, "freeze") as word:
        word("dragged", go_on=False)
        until(r.engaged)
        assert r.buttons() == [Button.ENABLE]
        word("end")
        assert Button.DISABLE in r.buttons()
        assert not r.engaged()


def test_two_fingers_on_a_phone(spec):
    with robot(spec, OPTIONS) as r, browser(r, "touch") as word:
        start = r.kinematics.position(r.q())
        word("dragged", go_on=False)
        until(r.engaged)
        assert np.linalg.norm(r.kinematics.position(r.q()) - start) > 0.02
        word("end")
        until(lambda: r.buttons()[-1] is Button.DISABLE)
        until(lambda: not r.engaged())


def test_a_headset_leads_by_its_controller(spec):
    if not (PACKAGES / "node_modules/iwer").exists():
        pytest.skip(f"no iwer in {PACKAGES}")
    with robot(spec, {**OPTIONS, "linear": 0.5}) as r, browser(r, "xr") as word:
        start = r.kinematics.position(r.q())
        word("free", go_on=False)
        assert r.q() == pytest.approx(spec.home)
        said = word("dragged")
        assert r.engaged(), (said, r.said(), r.buttons())
        assert r.kinematics.position(r.q()) - start == pytest.approx([0, 0.08, 0], abs=0.02)
        assert r.q()[6] > 0.9  # the trigger is not pulled
        word("end")
        until(lambda: r.buttons() == [Button.ENABLE, Button.DISABLE, Button.ESTOP])
        until(lambda: not r.engaged())
