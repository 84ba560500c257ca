"""A simulated robot that is served to learn on, in simulated time, and whoever stands beside it."""

from __future__ import annotations

import numpy as np

from configs.loader import load_config
from real_robot.core.actions import ActionSpace
from real_robot.core.streams import teleop_dtype
from real_robot.core.types import SECOND
from real_robot.live.robot import LiveRobot
from real_robot.live.served import ServedRobot
from real_robot.recorder.sampling import Rule
from real_robot.simulators.lab import Lab
from tests.real_robot.trivial_server import serving


class Table:
    """A simulated robot that is served, and whoever stands beside it."""

    def __init__(self, **options):
        config = load_config("live", ["robot=mujoco"])
        self.lab = Lab(config)
        self.robot = LiveRobot(
            self.lab.session, self.lab.spec, clock=self.lab.clock, hand=config["hand"], **{"simulated": True, **options}
        )
        self.hand = self.lab.session.create("teleop", teleop_dtype(self.lab.spec.n), 4096)
        self.plans: list[tuple[int, object]] = []
        self.lab.each.append(self._do)
        self.lab.clock.advance(0.5)
        self.served = ServedRobot(self.robot)
        self._serving = serving(self.served)
        self.address = self._serving.__enter__()

    def _do(self, now):
        for plan in [p for p in self.plans if p[0] <= now]:
            self.plans.remove(plan)
            plan[1]()

    def after(self, seconds, do):
        self.plans.append((self.lab.clock.now() + round(seconds * SECOND), do))

    def press(self, button, seconds=0.0):
        self.after(seconds, lambda: self.lab.press(button))

    def lead(self, seconds, until):
        """A person's hand holds the arm where it is."""
        begin = self.lab.clock.now()

        def say(now):
            if begin + seconds * SECOND <= now <= begin + until * SECOND:
                target = self.lab.controller.follower.q
                self.hand.put(np.array((now < begin + until * SECOND - 2e7, target, 0), self.hand.dtype), now)

        self.lab.each.append(say)

    def args(self, **changes):
        spec = self.lab.spec
        told = {"rule": Rule(hz=10.0).to_dict(), "actions": ActionSpace.of(spec, "delta", 10.0).to_dict()}
        return {"suite": "real", "server": self.address, "obs": ["agent_pos", "cube"], "joints": list(spec.joints),
                "episode_length": 100, "patience_s": 1.0, **told, **changes}  # fmt: skip

    def close(self):
        self._serving.__exit__(None, None, None)
        self.served.close()
        self.lab.close()
