"""A robot of a running session as something to learn on: episodes, and what was really done of the actions asked for.

An action is done as a deployed policy's is: as part of a chunk, by the control process' executor, follower and safety
layer. Whether it was done is read from what control says of every tick. Where control did not follow (a person took
over, the robot was stopped, or its cameras have gone), the episode is cut before that step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.errors import ContractError
from real_robot.agent.observe import NotReady, Observer, Window
from real_robot.control.machine import Machine
from real_robot.core.actions import ActionSpace
from real_robot.core.clock import MonotonicClock
from real_robot.core.ring import Ring
from real_robot.core.streams import HUMAN, MAX_ACTIONS, POLICY, REQUEST, Events, Session, chunk_dtype
from real_robot.core.types import SECOND, Button, Clock, Joints, RobotSpec
from real_robot.recorder.wishes import Wishes, asks
from real_robot.simulators.hand import Pick
from real_robot.simulators.port import ask
from real_robot.trials import AT_HOME, LOST, SETTLE

OURS = "request.live"
MOMENT = SECOND // 20  # ns between two looks
LEG = 0.1  # s between two points of the way home
SLOW = 0.2  # of the fastest, where no model tells how to lift the tool first

Reward = Callable[[Mapping[str, np.ndarray]], tuple[float, bool]]
"""Of a frame {key: array}: (reward, whether the task is done)."""


@dataclass
class Episode:
    """What a learner asked for.

    Attributes:
        observer: To = 1. space: of the actions.
        seed: where a simulated world begins. length: steps until it is truncated.
        steps: done so far. over: nothing more of it is done.
    """

    observer: Observer
    space: ActionSpace
    seed: int
    length: int
    steps: int = 0
    succeeded: bool = False
    over: bool = False


@dataclass
class Outcome:
    """Of a chunk: one entry per step that was done.

    Attributes:
        frames: {key: (1, *shape)} after each step. reward, success: of each.
        terminated: the task ended with the last of them (done, or failed for good).
        truncated: the episode ended otherwise: its time was over, or it was ``cut``, for that reason.
    """

    frames: list[Window] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    cut: str = ""


class LiveRobot:
    """Leads the robot through episodes; everything here is called from one thread.

    Args:
        session: of the robot; no policy process writes its chunks.
        spec: of the robot, with home.
        simulated: its world is reset by seed, and nobody is needed: enabled, recovered and begun by itself.
        reward: see ``Reward``; None: 1 where the task is done, as a person (SUCCESS) or a simulated world says.
        hand: options of ``Pick``, by which the robot is led home.
        max_age: s that control follows a chunk.
        action_latency: s that control is ahead of a chunk.
        clock: the session's.
    """

    def __init__(
        self,
        session: Session,
        spec: RobotSpec,
        *,
        simulated: bool,
        reward: Reward | None = None,
        hand: Mapping[str, Any] | None = None,
        max_age: float = 2.0,
        action_latency: float = 0.0,
        clock: Clock | None = None,
    ):
        if spec.home is None:
            raise ContractError(f"robot {spec.name} has no home, where episodes could begin.")
        self.session, self.spec, self.simulated, self.reward = session, spec, simulated, reward
        self.clock, self.max_age = clock or MonotonicClock(), max_age
        self.events = Events(session, "live")
        self._home = spec.home
        self._way = Pick(spec, **(hand or {})) if spec.model is not None and spec.tcp is not None else None
        self._chunks = session.create("chunk", chunk_dtype(spec.n), 64)
        self._request = session.create(OURS, REQUEST, 256)
        self._rings: dict[str, Ring] = {}
        self._wishes = Wishes()
        self._latency = round(action_latency * SECOND)
        self._id = self._seen = 0  # chunks written; records of control looked at
        self._episode: Episode | None = None
        self._said = False  # a person has labelled the step's end
        self._called = ""  # what a person was last asked to do

    # ------------------------------------------------------------------ the session

    def _ring(self, name: str) -> Ring | None:
        if (name not in self._rings or not self._rings[name].is_current) and self.session.has(name):
            self._rings[name] = self.session.attach(name)
        return self._rings.get(name)

    def _newest(self, name: str) -> Any:
        ring = self._ring(name)
        record = None if ring is None else ring.latest()
        return None if record is None else record.data

    def _press(self, buttons: Button) -> None:
        self._request.put(np.array((int(buttons),), REQUEST), self.clock.now())

    def _pressed(self) -> Button:
        """What people have pressed since the last call, of START, STOP, SUCCESS, FAILURE and DISCARD."""
        names = [name for name in self.session.names() if asks(name) and name != OURS]
        buttons = Button.NONE
        for wish in self._wishes.read({name: ring for name in names if (ring := self._ring(name)) is not None}):
            buttons |= wish.buttons
            self._wishes.done(wish)
        return buttons

    def _sent(self) -> Joints:
        return np.array(self._newest("command")["sent"], np.float64)

    def _write(self, points: np.ndarray, dt: float) -> int:
        """A chunk (T, n) whose first point is due now; returns its id."""
        now, record = self.clock.now(), np.zeros((), self._chunks.dtype)
        self._id += 1
        record["id"], record["t_obs"], record["due"], record["dt"] = self._id, now, now, dt
        record["length"], record["asked"], record["answered"] = len(points), now, now
        record["actions"] = np.nan
        record["actions"][: len(points)] = points
        self._chunks.put(record, now)
        return self._id

    def _rest(self) -> None:
        self.clock.sleep_until(self.clock.now() + MOMENT)

    # ------------------------------------------------------------------ before an episode

    def leads(self, episode: Episode | None) -> bool:
        """Whether it is the last that was begun."""
        return episode is not None and episode is self._episode

    def begin(self, episode: Episode) -> Iterator[str]:
        """Ends the one before; until the robot stands at home in a world that is ready, says what is waited for."""
        if self._episode is not None:  # what a person has done since it was cut belongs to its recording
            self._episode.over = True
            self._press(Button.STOP)
        self._episode = episode
        self._called = ""
        while True:
            while why := self._held():
                self._rest()
                yield self._call(why)
            self._rest()  # control follows nothing that was seen before it was free to
            self._rest()
            yield from self._lead_home()
            if not self._held() and np.abs(self._newest("state")["q"] - self._home).max() < AT_HOME:
                yield from self._arrange(episode.seed)
                if not self._held() and not self._strangers(None, self.clock.now()):
                    break
        if self.simulated:
            self._press(Button.START)
        self._pressed()

    def _held(self) -> str:
        """Why the robot may not be led now; where nobody is needed, asks for what is missing."""
        command = self._newest("command")
        if command is None or self._newest("state") is None:
            return "the robot has not been heard of yet"
        if int(command["source"]) == HUMAN:
            return "a person leads the robot"
        state = Machine(int(command["state"]))
        if state in (Machine.RUN, Machine.PAUSE):
            return ""
        if self.simulated:
            self._press(Button.RECOVER if state == Machine.FAULT else Button.ENABLE)
        wanted = "RECOVER, once the cause has been seen to" if state == Machine.FAULT else "ENABLE"
        return f"the robot is in {state.name}; a person has to press {wanted}"

    def _call(self, why: str) -> str:
        """Tells the people at the robot, once, where it waits for one of them; returns ``why``."""
        if not self.simulated and why != self._called:
            self.events.info(why)
            self._called = why
        return why

    def _lead_home(self) -> Iterator[str]:
        begun, points = self.clock.now(), [self._sent()] * 2
        for point in itertools.chain(self._points(points[0]), itertools.repeat(self._home, 8)):
            points = [*points[-2:], point]
            self._write(np.stack(points), LEG)
            self.clock.sleep_until(self.clock.now() + round(LEG * SECOND))
            if self._held():
                return
            lost = self.clock.now() - begun > LOST
            if lost and self.simulated:  # an arm that has tied itself into a knot is put back, as only here it can be
                ask(self.session.folder, reset=None, robot=True)
                return
            yield self._call("the arm does not get home; take over and lead it there") if lost else "it is led home"

    def _points(self, at: Joints) -> Iterator[Joints]:
        """The way home, a point every ``LEG`` s: up first, where a model tells what that is."""
        if self._way is not None:
            self._way.go_home(at.copy())
            while not self._way.done:
                at = self._way.move(self._newest("state")["q"], LEG).copy()
                yield at
        step = SLOW * self.spec.velocity * LEG
        while np.abs(self._home - at).max() > 1e-6:
            at = at + np.clip(self._home - at, -step, step)
            yield at

    def _arrange(self, seed: int) -> Iterator[str]:
        """The world as it is to be; nothing is said of who has meanwhile touched the robot."""
        command = self._ring("command")
        assert command is not None
        self._seen = command.newest
        if self.simulated:
            ask(self.session.folder, reset=seed)
            until = self.clock.now() + SETTLE
            while self.clock.now() < until or int(self._newest("world")["seed"]) != seed:
                self._rest()
                yield "the world is reset"
            return
        self._pressed()
        while Button.START not in self._pressed() and not self._held():
            self._rest()
            yield self._call("a person has to arrange the scene, and press START")

    # ------------------------------------------------------------------ an episode

    def act(self, episode: Episode, actions: np.ndarray) -> Outcome:
        """Does (Ta, n) actions from now on, one per period, until the episode ends."""
        out, period = Outcome(), round(SECOND / episode.space.hz)
        if len(actions) >= MAX_ACTIONS or len(actions) * period + MOMENT > self.max_age * SECOND:
            raise ContractError(
                f"{len(actions)} actions at {episode.space.hz:g} Hz are more than {MAX_ACTIONS - 1}, or last longer "
                f"than safety.max_age={self.max_age:g} s: a shorter n_action_steps (algo.hold) will do."
            )
        if not self.leads(episode) or episode.over:
            out.truncated, out.cut = True, "another episode was begun"
            return out
        begun = self.clock.now()
        out.cut = self._strangers(None, begun)
        if not out.cut:
            start = self._sent()
            number = self._write(
                np.concatenate([start[None], episode.space.decode(actions, start)]), 1 / episode.space.hz
            )
            for k in range(1, len(actions) + 1):
                self.clock.sleep_until(begun + k * period)
                last = k == len(actions)
                out.cut = self._strangers(number, begun + k * period, first=k == 1, grace=self._latency if last else 0)
                if out.cut or self._step(episode, out, begun + k * period):
                    break
        if out.cut:
            out.truncated = episode.over = True
            self.events.warning(f"the episode is cut after {episode.steps} steps: {out.cut}")
        elif out.terminated or out.truncated:
            episode.over = True
            label = Button.SUCCESS if out.success[-1] else Button.FAILURE
            self._press(Button.STOP | (Button.NONE if self._said else label))  # for the recorder
            self._write(np.stack([self._sent()] * (len(actions) + 1)), 1 / episode.space.hz)  # instead of the rest
        return out

    def _step(self, episode: Episode, out: Outcome, t: int) -> bool:
        """Judges the step that ended at ``t``; whether the episode is over."""
        try:
            window = episode.observer.window(t)
        except NotReady as e:
            out.cut = str(e)
            return True
        pressed, world = self._pressed(), self._newest("world") if self.simulated else None
        self._said = bool(pressed)
        success = Button.SUCCESS in pressed
        if self.reward is not None:
            reward, done = self.reward({key: x[0] for key, x in window.items()})
            success |= bool(done)
        else:
            success |= world is not None and bool(world["success"])
            reward = float(success and not episode.succeeded)
        episode.steps += 1
        episode.succeeded |= success
        out.frames.append(window)
        out.reward.append(float(reward))
        out.success.append(success)
        out.terminated = success or Button.FAILURE in pressed
        late = episode.steps >= episode.length or bool(pressed & (Button.STOP | Button.DISCARD))
        out.truncated = late and not out.terminated
        return out.terminated or out.truncated

    def _strangers(self, number: int | None, until: int, *, first: bool = False, grace: int = 0) -> str:
        """Who else has led since the last look, up to ``until``: why the robot did not follow us; "" if it did.

        Args:
            number: of the chunk that it was to follow; None where it had only to stand.
            until: ns. grace: before it, in which the chunk may be over already.
            first: the chunk need not have been taken yet when the step began.
        """
        ring = self._ring("command")
        assert ring is not None
        records, missed = ring.since(self._seen)
        following = number is not None and not first
        for n, t, d in records:
            if t > until:
                break
            self._seen = n
            if int(d["state"]) not in (Machine.RUN, Machine.PAUSE):
                return f"the robot is in {Machine(int(d['state'])).name}"
            if int(d["source"]) == HUMAN:
                return "a person has taken over"
            ours = int(d["source"]) == POLICY and int(d["chunk"]) == number
            if following and not ours and t < until - grace:
                return "control has stopped following"
            following |= ours
        if missed > 0:
            return "the robot was not looked at for too long"
        if number is not None and not following:
            return "control did not take the actions; its log says why"
        return ""
