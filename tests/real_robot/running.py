"""A session on the simulated arm that waves, by its policy or by a hand, for tests that break it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from configs.loader import load_config
from real_robot.control.machine import Machine
from real_robot.core.streams import REQUEST, Session
from real_robot.core.supervisor import Part, Supervisor
from real_robot.core.types import SECOND, Button
from real_robot.parts import parts_of, spec_of
from tests.real_robot import faulty
from tests.real_robot.arms import check_limits

CHUNK = faulty.LENGTH / faulty.HZ  # s that the last chunk goes on for, at most
BRAKING = 1.0  # s, and what a starved machine needs to notice
PATIENT = ["safety.watch.late=5.0", "safety.watch.overruns=10000", "safety.watch.robot=5.0", "priority=null"]


class Running:
    """A session with a robot that waves, by its policy or by a hand.

    Args:
        camera: the policy sees a picture.
        hand: a scripted hand leads, and there is no policy.
        record: into folder "out", or that one.
        given: further options of deploy.
    """

    def __init__(
        self,
        tmp_path: Path,
        *,
        camera: bool = False,
        hand: bool = False,
        record: bool | Path = False,
        given: tuple[str, ...] = (),
    ):
        options = [*PATIENT, "checkpoint=none", "mode=replace", *given]
        options += ["cameras.front.type=tests.real_robot.faulty:Grey"] if camera else []
        self.out = record if isinstance(record, Path) else tmp_path / "out"
        options += [f"out={self.out}"] if record else []
        config = load_config("deploy", options)
        self.spec, self.fault = spec_of(config), tmp_path / "fault"
        if hand:
            config["teleop"] = {"device": "scripted", "path": str(self._script(tmp_path))}
        parts = parts_of(config, self.spec)
        policy = next(part for part in parts if part.name == "policy")
        wave = {"metadata": faulty.contract(self.spec, camera), "fault": str(self.fault)}
        policy.options = {"policy": wave, "mode": "replace", "build": faulty.build}
        self.supervisor = Supervisor([p for p in parts if not (hand and p.name == "policy")])
        self.session: Session = self.supervisor.session
        self._request = self.session.create("request.test", REQUEST, 64)

    def _script(self, tmp_path: Path) -> Path:
        t = np.arange(0, 60, 0.02)
        target = np.repeat(self.spec.home[None], len(t), 0)
        target[:, 0] += 0.2 * np.sin(2 * t)
        buttons = np.where(t < 3, int(Button.ENABLE), 0)
        np.savez(tmp_path / "hand.npz", t=t, engaged=t > 0.1, target=target, buttons=buttons)
        return tmp_path / "hand.npz"

    def part(self, name: str) -> Part:
        return next(p for p in self.supervisor.parts if p.name.startswith(name))

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.part(name).process.pid, number)

    def press(self, buttons: Button) -> None:
        self._request.put(np.array((int(buttons),), REQUEST), time.monotonic_ns())

    def commands(self, since: int = 0) -> np.ndarray:
        """Records of the last ones, from monotonic time ``since`` on."""
        records, _ = self.session.attach("command").since(0)
        return np.array([r.data for r in records if r.t >= since])

    def until(self, true, seconds: float = 30.0, what: str = "") -> float:
        """s that it took; the supervisor looks after its processes meanwhile."""
        begin = time.monotonic()
        while not true():
            self.supervisor.watch()
            assert time.monotonic() - begin < seconds, f"{what} did not happen: {self.supervisor.news()}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def _last(self, n: int) -> np.ndarray:
        return self.commands(time.monotonic_ns() - SECOND)[-n:]

    def moves(self) -> bool:
        last = self._last(20)
        return len(last) == 20 and bool((np.diff(last["sent"], axis=0) != 0).any(1).all())

    def stands(self) -> bool:
        last = self._last(10)
        return len(last) == 10 and bool((np.diff(last["sent"], axis=0) == 0).all())

    def led(self) -> set[int]:
        return set(self._last(10)["source"].tolist())


@contextmanager
def running(tmp_path, **options):
    r = Running(tmp_path, **options)
    with r.supervisor:
        r.until(lambda: r.session.has("command"), what="control")

        def enabled():
            r.press(Button.ENABLE)
            return len(r._last(1)) and int(r._last(1)["state"][0]) in (Machine.RUN, Machine.PAUSE)

        r.until(enabled, what="enabling")
        r.until(r.moves, 60, what="waving")
        yield r
        sent = r.commands()["sent"]
        assert r.supervisor.failed is None
        check_limits(r.spec, sent, sent[0]) if len(sent) < 4096 else check_limits_within(r, sent)
    r.session.close()


def check_limits_within(r, sent):
    """Of a piece that does not begin at rest: the first three rows are its history."""
    for order, limit in enumerate((r.spec.velocity, r.spec.acceleration, r.spec.jerk), start=1):
        assert (np.abs(np.diff(sent, order, axis=0)) / r.spec.dt**order <= limit * (1 + 1e-7)).all()
