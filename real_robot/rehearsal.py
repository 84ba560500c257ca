"""Trials in simulated time: a policy as it is deployed, on a robot that is simulated in this process.

Everything that a deployed policy meets is there but for processes and wires: its observer and modes, the executor, the
safety layer. An answer takes exactly ``inject`` s, however long it is computed, so that the same seeds give the same
result on every machine, as fast as it can compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from real_robot.agent.observe import Observer
from real_robot.agent.planner import Planner
from real_robot.agent.process import Agent
from real_robot.core.actions import ActionSpace
from real_robot.core.types import PolicyClient, RobotSpec
from real_robot.remote.keys import task_of
from real_robot.simulators.lab import Lab
from real_robot.trials import Trials


@dataclass
class Rehearsal:
    """What came of it.

    Attributes:
        trials: (seed, success, seconds).
        sent: per trial, (T, n) what the robot was sent while the policy led, one row per control period.
        spec: of the robot.
    """

    trials: list[tuple[int, bool, float]]
    sent: list[np.ndarray]
    spec: RobotSpec

    @property
    def jerk(self) -> float:
        """Root mean square of the arm's, as it was sent, rad/s^3; the mean over trials."""
        arms = [sent[:, : self.spec.n - self.spec.gripper] for sent in self.sent if len(sent) > 3]
        return float(np.mean([np.sqrt(np.mean(np.square(np.diff(q, 3, axis=0) / self.spec.dt**3))) for q in arms]))

    @property
    def success_rate(self) -> float:
        """Share of trials."""
        return float(np.mean([success for _, success, _ in self.trials]))


def rehearse(
    config: Mapping[str, Any],
    client: PolicyClient,
    seeds: list[int],
    *,
    finished: Callable[[int, bool, float], None] = lambda *_: None,
) -> Rehearsal:
    """Runs one trial per seed.

    Args:
        config: as of ``python -m real_robot.deploy``: robot, safety, sensors, mode, every, inject, trial_seconds.
        client: whose policy it is, loaded for the mode.
        seeds: of the trials.
        finished: called with (seed, success, seconds) after each.

    Raises:
        ConfigError: the robot is not one that can be simulated in place, or the policy was loaded for another mode.
        ContractError: the policy was not trained on recorded episodes, or observes what is not there.
    """
    mode = config["mode"]
    planner, task = Planner(client, mode), task_of(client.metadata)
    lab = Lab(config, "ensemble" if mode == "ensemble" else "replace")
    sent: list[np.ndarray] = []
    row: list[np.ndarray] = []

    def over(seed: int, success: bool, seconds: float) -> None:
        sent.append(np.array(row[-round(seconds * lab.spec.control_hz) :]))
        row.clear()
        finished(seed, success, seconds)

    try:
        trials = Trials(
            lab.session,
            lab.spec,
            seeds,
            seconds=config["trial_seconds"],
            ready=lambda: True,
            finished=over,
            hand=config.get("hand"),
        )
        lab.each += [lambda now: row.append(lab.controller.follower.q.copy()), trials.step]
        lab.clock.advance(lab.spec.dt)
        agent = Agent(
            lab.session,
            planner,
            Observer(lab.session, task, planner.n_obs_steps),
            space=ActionSpace.from_dict(task.env_args["actions"]),
            mode=mode,
            every=config["every"],
            clock=lab.clock,
            inject=config["inject"],
        )
        while not trials.done:
            agent.step()
    finally:
        lab.close()
    return Rehearsal(trials.results, sent, lab.spec)
