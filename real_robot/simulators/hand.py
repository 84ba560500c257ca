"""A scripted person at the teleoperation device: picks the cube up and puts it on the disc, episode after episode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from data.errors import DataError
from real_robot.control.machine import Machine
from real_robot.core.kinematics import Kinematics, Pose
from real_robot.core.ring import Ring
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Button, DeviceError, Joints, RobotSpec, State, TeleopSample
from real_robot.simulators.port import ask

Point = Float64[np.ndarray, " 3"]


class Waypoint(NamedTuple):
    """A straight way of the tool, then a grip."""

    goal: Point  # m, in the robot's frame
    opening: float  # of the gripper on the way
    wait: float  # s at the goal


class Pick:
    """The tool's way to the cube, again where it does not hold it then, and to the disc, as joint targets.

    Args:
        spec: of the robot, with model, tcp and home.
        speed, acceleration: of the tool, m/s, m/s^2.
        hover: height above the table that it travels at, m.
        grasp: height that it grasps and lets go at, m.
        grip_s: given to the gripper to close or open.
        jitter: m, by which the points above cube and disc are off, differently in each episode: people vary.
        wander: by which it strays from a straight way, as a share of its length (standard deviation), and comes back.
        misses: share of the episodes in which it closes the gripper above or beside the cube first.
        opening: of the gripper when it holds nothing.
        offset: of a held cube's middle from the tool's centre, m, in the tool's frame.
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        speed: float = 0.35,
        acceleration: float = 1.2,
        hover: float = 0.14,
        grasp: float = 0.02,
        grip_s: float = 0.45,
        jitter: float = 0.01,
        wander: float = 0.08,
        misses: float = 0.3,
        opening: float = 1.0,
        offset: Sequence[float] = (0.0, 0.0, 0.0),
    ):
        assert spec.home is not None
        self.spec, self._kinematics = spec, Kinematics(spec)
        self._home: Pose = self._kinematics.forward(spec.home)
        self._speed, self._acceleration = speed, acceleration
        self._hover, self._grasp, self._grip, self._jitter = hover, grasp, grip_s, jitter
        self._wander, self._misses = wander, misses
        self._open = opening
        self._tool = -self._home[:3, :3] @ np.asarray(offset, np.float64)  # from the cube to the tool
        self._plan: deque[Waypoint] = deque()
        self._next: Callable[[], None] | None = None  # what is planned when the plan is done
        self.q = spec.home.copy()

    @property
    def done(self) -> bool:
        """Whether it has arrived."""
        return not self._plan

    def begin(self, look: Callable[[], Point], disc: np.ndarray, seed: int, target: Joints) -> None:
        """Sets out, from joint target (n,): ``look`` tells the cube's middle (3,), the disc's is (2,), m."""
        self._rng = np.random.default_rng(seed + 1_000_000)
        self._take_over(target)
        self._look, self._disc = look, disc
        self._grab(missing=self._rng.random() < self._misses)

    def _grab(self, missing: bool = False) -> None:
        """Down, close, and up again; missing, above the cube or beside it."""
        cube, height = self._look()[:2], self._hover - self._grasp
        at = np.append(cube, self._grasp)
        if missing:
            angle = self._rng.uniform(0, 2 * np.pi)
            aside = np.array([np.cos(angle), np.sin(angle), 0.0])
            high = aside * self._rng.uniform(0, 0.2) + [0, 0, self._rng.uniform(0.35, 0.5)]
            at = at + height * (high if self._rng.random() < 0.5 else aside * self._rng.uniform(0.5, 0.65))
        above = np.append(cube + self._off(), self._hover)
        up = np.append(at[:2], self._grasp + height * self._rng.uniform(0.6, 1.0) if missing else self._hover)
        self._set_out([
            Waypoint(above, self._open, 0.0), Waypoint(at, self._open, 0.1), Waypoint(at, 0.0, self._grip),
            Waypoint(up, 0.0, 0.0),
        ])  # fmt: skip
        self._next = self._lifted

    def _lifted(self) -> None:
        """On to the disc, if it holds the cube; else once more."""
        if self._look()[2] < self._grasp + 0.25 * (self._hover - self._grasp):
            self._grab()
            return
        over, low = np.append(self._disc + self._off(), self._hover), np.append(self._disc, self._grasp + 0.004)
        self._set_out([
            Waypoint(over, 0.0, 0.0), Waypoint(low, 0.0, 0.1), Waypoint(low, self._open, self._grip),
            Waypoint(over, self._open, 0.0),
        ])  # fmt: skip

    def _off(self) -> np.ndarray:
        return self._rng.uniform(-self._jitter, self._jitter, 2)

    def _set_out(self, points: list[Waypoint]) -> None:
        """Plans the ways to points of the cube, each bent: somewhere on it, a point beside it."""
        last, lowest = self._point, self._tool[2] + self._grasp + 0.35 * (self._hover - self._grasp)
        self._next = None
        for point in points:
            point = point._replace(goal=point.goal + self._tool)
            way = point.goal - last
            stray = self._wander * np.linalg.norm(way)
            if stray > 0.001:
                via = last + self._rng.uniform(0.3, 0.7) * way + stray * self._rng.standard_normal(3).clip(-2, 2)
                via[2] = max(via[2], lowest)
                self._plan.append(point._replace(goal=via, wait=0.0))
            self._plan.append(point)
            last = point.goal

    def go_home(self, target: Joints) -> None:
        """Up first, so that nothing is swept off the table."""
        self._take_over(target)
        up = self._point.copy()
        up[2] = max(up[2], self._hover)
        self._plan = deque([Waypoint(up, self._open, 0.0), Waypoint(self._home[:3, 3], self._open, 0.4)])

    def _take_over(self, target: Joints) -> None:
        """From what the robot was last asked for: no jump."""
        self._plan.clear()
        self._next = None
        self.q = target.copy()
        self._point, self._v, self._waited = self._kinematics.position(target), 0.0, 0.0

    def move(self, q: Joints, dt: float) -> Joints:
        """(n,) target ``dt`` s on, for a robot at ``q``: the tool's point runs ahead along the plan."""
        if not self._plan:
            return self.q
        goal, opening, wait = self._plan[0]
        way = goal - self._point
        distance = float(np.linalg.norm(way))
        if self.spec.gripper:
            self.q[-1] = opening
        if distance > 1e-6:
            fastest = np.sqrt(2 * self._acceleration * distance)
            self._v = min(self._speed, self._v + self._acceleration * dt, fastest)
            step = min(distance, max(self._v, 0.02) * dt)
            self._point = self._point + way / distance * step
            pose = self._home.copy()
            pose[:3, 3] = self._point
            self.q = self._kinematics.inverse(pose, self.q)
        elif np.linalg.norm(self._kinematics.position(q) - goal) < 0.015:
            self._waited += dt
        if distance <= 1e-6 and (self._waited > wait or wait == 0):
            self._plan.popleft()
            self._v = self._waited = 0.0
            if not self._plan and self._next is not None:
                self._next()
        return self.q


class Hand:
    """Sees what the tracker sees (ring ``world``), leads the robot through joint targets, and presses the buttons.

    An episode: START, the task, SUCCESS | STOP when the world says so and the tool is back up, FAILURE | STOP after
    ``patience_s``; then the robot is led home unrecorded and the cube put where the next seed says.

    Args:
        spec: of the robot that is led, with model and tcp; its home is where episodes start.
        session: with ring ``world``, and the simulator's port in its folder.
        episodes: until QUIT.
        seed: of the first episode; the next have the next ones.
        pick: the way that it goes.
        patience_s: for one episode.
        wait: asks for the robot to be enabled, and recovered, whenever it is not; without it, nobody is there to ask.
    """

    def __init__(
        self,
        spec: RobotSpec,
        session: Session,
        pick: Pick,
        *,
        episodes: int = 1,
        seed: int = 0,
        patience_s: float = 20.0,
        wait: bool = False,
    ):
        self.spec, self._session, self._pick = spec, session, pick
        self.left, self._seed = episodes, seed
        self._patience, self._wait = patience_s, wait
        self._world: Ring | None = None
        self._commands: Ring | None = None
        self.results: list[bool] = []
        self._phase = "begin"
        self._wish = 0  # world's episode count that is waited for
        self._t = 0

    def start(self) -> None:
        """Raises DeviceError where no simulator publishes its world."""
        try:
            self._world = self._session.attach("world")
        except DataError as e:
            raise DeviceError(f"The scripted hand sees nothing: {e}") from None

    def close(self) -> None:
        """Nothing is held."""

    def _look(self) -> Any:
        record = self._world.latest() if self._world is not None else None
        if record is None:
            raise DeviceError("The scripted hand sees nothing: no world was published.")
        return record.data[()]

    def read(self, state: State, target: Joints) -> TeleopSample | None:
        """One wish per call; call it at 20 Hz or more."""
        dt = min((state.t - self._t) / SECOND, 0.1) if self._t else 0.0
        if dt <= 0 and self._t:
            return None
        self._t = state.t
        world, buttons = self._look(), Button.NONE
        if self._wait and (machine := self._machine()) not in (Machine.RUN, Machine.PAUSE):
            return self._stopped(state, target, machine)
        if self._phase == "begin":
            self._reset(world, state)
            buttons = Button.ENABLE
        elif self._phase == "reset" and world["episode"] != self._wish:
            self._begin(world, target, state)
            buttons = Button.START | Button.ENABLE
        elif self._phase == "task" and (over := self._over(world, state)) is not None:
            self.results.append(over)
            buttons = Button.STOP | (Button.SUCCESS if over else Button.FAILURE)
            self._pick.go_home(target)
            self._phase = "home"
        elif self._phase == "home" and self._pick.done:
            self.left -= 1
            if self.left <= 0:
                self._phase = "done"
                buttons = Button.QUIT
            else:
                self._reset(world, state)
        if self._phase in ("task", "home"):
            self._pick.move(state.q, dt)
        engaged = self._phase in ("task", "home")
        return TeleopSample(state.t, engaged, self._pick.q.copy() if engaged else target.copy(), buttons)

    def _machine(self) -> int | None:
        """State of the control process."""
        if self._commands is None and self._session.has("command"):
            self._commands = self._session.attach("command")
        record = self._commands.latest() if self._commands is not None else None
        return None if record is None else int(record.data["state"])

    def _stopped(self, state: State, target: Joints, machine: int | None) -> TeleopSample:
        """The robot is not enabled, or no more: an episode under way has failed; asks, and goes home once it may."""
        buttons = Button.RECOVER if machine == Machine.FAULT else Button.ENABLE
        if self._phase == "task":
            self.results.append(False)
            buttons |= Button.STOP | Button.FAILURE
            self._phase = "home"
        if self._phase == "home":
            self._pick.go_home(target)
        return TeleopSample(state.t, False, target.copy(), buttons)

    # Episodes

    def _reset(self, world: Any, state: State) -> None:
        self._wish = int(world["episode"])
        ask(self._session.folder, reset=self._seed + len(self.results))
        self._phase = "reset"

    def _begin(self, world: Any, target: Joints, state: State) -> None:
        disc, seed = np.array(world["target"]), int(world["seed"])
        self._pick.begin(lambda: np.array(self._look()["cube"][:3]), disc, seed, target)
        self._phase, self._started = "task", state.t

    def _over(self, world: Any, state: State) -> bool | None:
        """True or False when the episode is over."""
        if self._pick.done and bool(world["success"]):
            return True
        return False if (state.t - self._started) / SECOND > self._patience else None
