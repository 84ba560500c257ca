"""The policy process: observes, infers, writes chunks. Nobody waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.errors import ContractError, DeftError
from real_robot.agent.observe import NotReady, Observer
from real_robot.agent.planner import Delays, Planner
from real_robot.control.machine import Machine
from real_robot.core.actions import ActionSpace
from real_robot.core.clock import MonotonicClock
from real_robot.core.ring import Ring
from real_robot.core.streams import HUMAN, MAX_ACTIONS, Events, Session, chunk_dtype
from real_robot.core.types import SECOND, Clock, DeviceError, PolicyClient
from real_robot.remote.keys import task_of


class Agent:
    """The loop around a planner.

    A decision is taken on the grid of the policy's control steps. ``sync`` asks again when the last chunk has been
    executed; the others as soon as ``every`` steps have passed and the last answer is there.

    Args:
        session: whose rings are read and written.
        planner: makes the chunks.
        observer: makes what it sees.
        space: of its actions.
        mode: see ``Planner``.
        every: steps between decisions, at least. By default n_action_steps less the delay of answers, so that nothing
            is done longer after its observation than n_action_steps, as in training and evaluation.
        lead: steps between an observation and the moment that its first action is due, by the data's rule.
        clock: the session's.
        inject: s by which every answer is held back; for experiments.
    """

    def __init__(
        self,
        session: Session,
        planner: Planner,
        observer: Observer,
        *,
        space: ActionSpace,
        mode: str,
        every: int | None = None,
        lead: int = 1,
        clock: Clock | None = None,
        inject: float = 0.0,
    ):
        self.session, self.planner, self.observer, self.mode = session, planner, observer, mode
        self.space, self.dt, self.lead, self.inject = space, 1 / space.hz, lead, inject
        self._every = every
        self.clock = clock or MonotonicClock()
        self.events = Events(session, "policy")
        self.delays = Delays(self.dt)
        n = session.attach("command").dtype["sent"].shape[0]
        self._ring: Ring = session.reopen("chunk", chunk_dtype(n), 64)
        self._command = session.attach("command")
        last = self._ring.latest()
        self._id = int(last.data["id"]) if last is not None else 0  # a policy that was started anew goes on counting
        self._asked_at: int | None = None  # t_obs of the chunk under way
        self._next = 0
        self._led = False  # by a person
        self._told = ""

    @property
    def every(self) -> int:
        """Steps between decisions, at least."""
        return self._every or max(1, self.planner.n_action_steps - self.delays.steps)

    def leads(self) -> bool:
        """Whether anybody would follow a chunk: the robot is enabled."""
        record = self._command.latest()
        return record is not None and int(record.data["state"]) in (Machine.RUN, Machine.PAUSE)

    def _hand(self) -> bool:
        record = self._command.latest()
        return record is not None and int(record.data["source"]) == HUMAN

    def step(self) -> bool:
        """One decision, or a moment of waiting; returns whether a chunk was written."""
        step = round(self.dt * SECOND)
        now = self.clock.now()
        if not self.leads():
            self._asked_at, self._next = None, now
            self.clock.sleep_until(now + step // 4)
            return False
        hand = self._hand()
        if self._led and not hand:  # a person has let go: what was proposed meanwhile was not done
            self._asked_at, self._next = None, now
        self._led = hand
        t_obs = max(now, self._next)
        if self._asked_at is not None and self.mode != "sync":  # on the grid of the chunk under way
            t_obs = self._asked_at + -(-(t_obs - self._asked_at) // step) * step
        if t_obs - now > step // 2:
            self.clock.sleep_until(now + step // 4)
            return False
        self.clock.sleep_until(t_obs)
        try:
            obs = self.observer.window(t_obs)
        except NotReady as e:
            self._say(f"the policy waits: {e}")
            self._asked_at, self._next = None, t_obs + step
            return False
        since = None if self._asked_at is None or hand else round((t_obs - self._asked_at) / step)
        start = self._sent(t_obs)
        try:
            chunk = self.planner.plan(obs, since, self.delays.steps)
        except DeviceError as e:  # the robot stops by itself, the last chunk's end is near
            self._say(str(e))
            self._asked_at, self._next = None, self.clock.now() + step
            return False
        self._say("")
        if self.inject:
            self.clock.sleep_until(max(self.clock.now(), t_obs + round(self.inject * SECOND)))
        self._write(self.space.decode(chunk, start), t_obs, start)
        return True

    def _sent(self, t: int) -> np.ndarray:
        """(n,) what the robot was sent last at time ``t``."""
        n = self._command.newest
        while (record := self._command.get(n)) is not None and record.t > t and self._command.get(n - 1) is not None:
            n -= 1
        assert record is not None
        return np.asarray(record.data["sent"], np.float64)

    def _write(self, actions: np.ndarray, t_obs: int, start: np.ndarray) -> None:
        step = round(self.dt * SECOND)
        answered = self.clock.now()
        self.delays.add((answered - t_obs) / SECOND)
        waits = self.mode == "sync"  # the world waits: the chunk begins when it is there
        due = (answered if waits else t_obs) + self.lead * step
        if self.space.space == "delta":  # where the first step begins is known too
            actions, due = np.concatenate([start[None], actions]), due - step
        length = min(len(actions), MAX_ACTIONS)
        record = np.zeros((), self._ring.dtype)
        self._id += 1
        record["id"], record["t_obs"], record["due"], record["dt"] = self._id, t_obs, due, self.dt
        record["length"], record["asked"], record["answered"] = length, t_obs, answered
        record["actions"] = np.nan
        record["actions"][:length] = actions[:length]
        self._ring.put(record, answered)
        self._asked_at = t_obs
        self._next = due + (length - 1) * step if waits else t_obs + self.every * step

    def _say(self, text: str) -> None:
        if text != self._told and text:
            self.events.warning(text)
        self._told = text

    def run(self) -> None:
        """Until the session ends."""
        while not self.session.stopping:
            self.step()


def build_client(policy: Mapping[str, Any], mode: str) -> PolicyClient:
    """Whom the planner asks.

    Args:
        policy: {"server": address}, or {"checkpoint": folder} with features, black_box, data and lerobot (see
            ``load_served``), n_action_steps, device, overrides (options of the head), threads (of torch), n_steps (of
            rti) and beta (of rtc).
        mode: see ``Planner``; a server has to be started for it.
    """
    if policy.get("server"):
        from real_robot.remote.client import API_KEY, RemotePolicy

        return RemotePolicy(policy["server"], api_key=os.environ.get(API_KEY), timeout_s=policy["timeout_s"])
    import torch

    from real_robot.remote.serving import LocalPolicy, load_served

    torch.set_num_threads(policy["threads"])
    options = {"rti": {"n_steps": policy["n_steps"]}, "rtc": {"beta": policy["beta"]}, "prefix": {}}
    served = load_served(
        policy["checkpoint"],
        device=policy["device"],
        policy=policy["overrides"],
        execution={"name": mode, **options[mode]} if mode in options else None,
        n_action_steps=policy["n_action_steps"],
        black_box=policy.get("black_box"),
        features=policy.get("features"),
        data=policy.get("data"),
        lerobot=policy.get("lerobot"),
    )
    return LocalPolicy(served)


def run(
    folder: str,
    *,
    policy: Mapping[str, Any],
    mode: str = "rtc",
    every: int | None = None,
    lead: int = 1,
    inject: float = 0.0,
    build: Callable[[Mapping[str, Any], str], PolicyClient] = build_client,
) -> None:
    """Loads, warms up, loops until the session ends.

    Args:
        folder: of the session.
        policy: see ``build_client``.
        mode, every, lead, inject: see ``Agent``.
        build: makes whom to ask, from ``policy`` and ``mode``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = Session(folder)
    events, clock = Events(session, "policy"), MonotonicClock()
    try:
        client = build(policy, mode)
        spec = task_of(client.metadata)
        planner = Planner(client, mode)  # type: ignore[arg-type]
        observer = Observer(session, spec, planner.n_obs_steps)
        blank = {k: np.zeros((planner.n_obs_steps, *f.shape), f.dtype) for k, f in spec.obs.items()}
        for since in (None, planner.n_action_steps):  # the first call of anything is slow
            planner.plan(blank, since, 0)
        while not session.has("command") and not session.stopping:
            clock.sleep_until(clock.now() + SECOND // 20)
        if session.stopping:
            return
        joints = session.attach("command").dtype["sent"].shape[0]
        if spec.action.shape != (joints,):
            raise ContractError(f"The policy commands {spec.action.shape[0]} joints, the robot has {joints}.")
        space = ActionSpace.from_dict(spec.env_args["actions"])
        agent = Agent(session, planner, observer, space=space, mode=mode, every=every, lead=lead, inject=inject)
        events.info(f"policy ready: {spec.name}, {spec.control_hz:g} actions/s, mode {mode}")
        agent.run()
    except DeftError as e:
        events.error(str(e))
        raise SystemExit(2) from None
