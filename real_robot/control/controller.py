"""One tick of the control process: read, decide who leads, follow within limits, write, tell.

Nothing here waits for anybody. What the other processes say is looked up in their rings; whether they are alive is
judged by how old it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from real_robot.control.executor import Executor, Wish
from real_robot.control.follower import Clip, Follower
from real_robot.control.machine import Facts, Machine, StateMachine
from real_robot.core.ring import Ring
from real_robot.core.streams import HOLD, HUMAN, POLICY, STOP, Events, Session, command_dtype, state_dtype
from real_robot.core.types import SECOND, Button, Chunk, Clock, DeviceError, Joints, Robot, RobotMode, State


@dataclass(frozen=True)
class Watch:
    """When what was heard is too old, or too far off. Times in s.

    Attributes:
        robot: without a new time stamp of the robot's own.
        teleop: without a sample of the device.
        enable: without ENABLE, where it has to be held; None: enabled until disabled.
        tracking: (rad, m) that the robot may be away from what it was told.
        late: that a tick may begin late.
        overruns: ticks in a row that may begin more than a period late.
    """

    robot: float = 0.15
    teleop: float = 0.25
    enable: float | None = None
    tracking: float = 0.3
    late: float = 0.25
    overruns: int = 20


class Controller:
    """Holds the robot, the state machine, the follower and the executor.

    Args:
        robot: connected.
        session: whose rings are read and written.
        clock: the session's.
        follower, executor: of the same robot.
        watch: limits of age.
    """

    def __init__(
        self,
        robot: Robot,
        session: Session,
        clock: Clock,
        follower: Follower,
        executor: Executor,
        watch: Watch | None = None,
    ):
        self.robot, self.spec, self.session, self.clock = robot, robot.spec, session, clock
        self.follower, self.executor, self.watch = follower, executor, watch or Watch()
        self.machine = StateMachine()
        self.events = Events(session, "control")
        n = self.spec.n
        self._states = session.reopen("state", state_dtype(n), 4096)
        self._commands = session.reopen("command", command_dtype(n), 4096)
        self._inputs: dict[str, Ring] = {}
        self._read_up_to: dict[str, int] = {}
        self.state: State | None = None
        self._heard_at = 0  # when the robot's own clock last moved
        self._enabled_at = 0
        self._teleop_at = 0
        self._hand: tuple[bool, Joints] | None = None
        self._overruns = 0
        self._clipped = Clip.NONE
        self._let_go_first = False
        self._led = HOLD  # who led in the last tick
        self._stopped = False  # the driver's own stop has been called since it last moved
        self._recover_until = 0
        self._ticks = 0
        self._attach(newest_only=True)

    # ------------------------------------------------------------------ hearing

    def _attach(self, newest_only: bool = False) -> None:
        """Rings that have appeared; what was asked for before this process lived is not followed."""
        for name in self.session.names():
            if name not in self._inputs and name.split(".")[0] in ("chunk", "teleop", "request"):
                ring = self._inputs[name] = self.session.attach(name)
                self._read_up_to[name] = ring.newest if newest_only else 0

    def _new(self, name: str) -> list:
        ring = self._inputs.get(name)
        if ring is None or ring.newest == self._read_up_to[name]:
            return []
        records, missed = ring.since(self._read_up_to[name])
        self._read_up_to[name] += missed + len(records)
        return records

    def _listen_to_robot(self, now: int) -> str | None:
        """The newest state; returns a fault, or None."""
        try:
            state = self.robot.read()
        except DeviceError as e:
            return f"robot: {e}"
        if not (np.isfinite(state.q).all() and np.isfinite(state.dq).all()):
            return "robot: its joint positions or velocities are not finite"
        if self.state is None or state.t_robot != self.state.t_robot:
            self._heard_at = now
        self.state = state
        if self.follower.tank is not None:
            self.follower.tank.feel(state.q, state.dq, state.t)
        record = np.zeros((), self._states.dtype)
        record["t_robot"], record["q"], record["dq"], record["mode"] = state.t_robot, state.q, state.dq, state.mode
        record["effort"] = np.nan if state.effort is None else state.effort
        self._states.put(record, state.t)
        if state.mode != RobotMode.READY:
            return f"robot: its controller is in {state.mode.name}"
        if now - self._heard_at > self.watch.robot * SECOND:
            return f"robot: its clock has stood still for {(now - self._heard_at) / SECOND:.2f} s"
        return None

    def _listen_to_people(self, now: int) -> Button:
        """Buttons since the last tick; remembers where the hand is."""
        buttons, heard = Button.NONE, self.clock.now()  # what is there was written since the tick began, too
        for name in self._inputs:
            if name.startswith("request"):
                for record in self._new(name):
                    buttons |= Button(int(record.data["buttons"]))
        for record in self._new("teleop"):
            buttons |= Button(int(record.data["buttons"]))
            target = np.asarray(record.data["target"], np.float64)
            fit = bool(np.isfinite(target).all()) and 0 <= heard - record.t <= self.watch.teleop * SECOND
            self._hand = (bool(record.data["engaged"]), target) if fit else None
            self._teleop_at = record.t
        if Button.ENABLE in buttons:
            self._enabled_at = now
        if heard - self._teleop_at > self.watch.teleop * SECOND:
            self._hand = None
        return buttons

    def _engaged(self) -> bool:
        """Whether the hand leads: one that was closed before the robot was enabled has to be opened first."""
        engaged = self._hand is not None and self._hand[0]
        enabled = self.machine.state in (Machine.RUN, Machine.PAUSE)
        self._let_go_first = engaged and (self._let_go_first or not enabled)
        return engaged and not self._let_go_first

    def _listen_to_policy(self) -> None:
        for record in self._new("chunk"):
            d = record.data
            length = int(np.clip(d["length"], 0, d["actions"].shape[0]))
            actions = np.asarray(d["actions"][:length], np.float64)
            chunk = Chunk(int(d["id"]), int(d["t_obs"]), int(d["due"]), float(d["dt"]), actions)
            if self.machine.state not in (Machine.RUN, Machine.PAUSE):
                continue
            if (reason := self.executor.accept(chunk, self.clock.now())) is not None:  # written since the tick began
                self.events.warning(f"chunk {chunk.id} refused: {reason}")

    # ------------------------------------------------------------------ acting

    def tick(self, due: int, missed: int = 0) -> None:
        """One control period, which was to begin at ``due``, after periods of ``missed`` ns that never came."""
        now = self.clock.now()
        if self._ticks % 32 == 0:
            self._attach()
        self._ticks += 1
        fault = self._listen_to_robot(now) or self._judge_time(now - due, missed) or self._judge_tracking()
        buttons = self._listen_to_people(now)
        self._listen_to_policy()
        wish = self.executor.target(now)
        engaged = self._engaged()
        held = self.watch.enable is None or now - self._enabled_at <= self.watch.enable * SECOND
        was = self.machine.state
        if was == Machine.FAULT:
            buttons |= self._recovery(buttons, now)
        heard = self.state is not None and fault is None
        leads = self.machine.update(Facts(heard, fault, engaged, wish is not None, buttons, held))
        self._announce(was)
        if Button.START in buttons or (was == Machine.READY and self.machine.state in (Machine.RUN, Machine.PAUSE)):
            self._fill_tank()
        if self.state is None:
            return
        if was in (Machine.INIT, Machine.FAULT) and self.machine.state == Machine.READY:
            self.follower.reset(self.state.q)  # where it is, not where it was told to go
        if self.machine.state not in (Machine.RUN, Machine.PAUSE) or (self._led == HUMAN and leads != HUMAN):
            self.executor.clear(now)  # what was planned before is no longer so
        self._led = leads
        target, velocity = self._lead(leads, wish)
        clip = self._follow(leads, target, velocity)
        self._write(leads)
        self._tell(now, due - missed, leads, target, wish, clip)

    def _lead(self, leads: int, wish: Wish | None) -> tuple[Joints, Joints | None]:
        if leads == HUMAN and self._hand is not None:
            return self._hand[1], None
        if leads == POLICY and wish is not None:
            return wish.q, wish.v
        return self.follower.q, None

    def _follow(self, leads: int, target: Joints, velocity: Joints | None) -> Clip:
        led = leads in (HUMAN, POLICY)
        clip = self.follower.step(target, velocity) if led else self.follower.brake()
        new = clip & ~self._clipped & ~Clip.RATE
        if new:
            self.events.warning(f"clipped by {new!r}".replace("<Clip.", "").split(":")[0])
        self._clipped = clip
        tank = self.follower.tank
        if tank is not None and tank.overdrawn > 0 and not self.follower.moving:
            self.events.warning(f"the stop took {tank.overdrawn:.3g} J more than the energy tank held")
            tank.overdrawn = 0.0
        return clip

    def _fill_tank(self) -> None:
        if (tank := self.follower.tank) is not None:
            left, _ = tank.level, tank.fill(self.follower.q)
            self.events.info(f"energy tank: {tank.level:.3g} J, {left:.3g} J were left")

    def _write(self, leads: int) -> None:
        if self.machine.state == Machine.INIT or (leads == STOP and self._stopped):
            return
        try:
            self.robot.write(self.follower.q.copy())
            self._stopped = leads == STOP and not self.follower.moving
            if self._stopped:
                self.robot.stop()
        except DeviceError as e:
            self.events.error(f"robot: {e}")

    def _recovery(self, buttons: Button, now: int) -> Button:
        """Asks the robot to recover; RECOVER then holds for as long as that may take."""
        if Button.RECOVER in buttons:
            self._recover_until = now + 2 * SECOND
            try:
                self.robot.recover()
            except DeviceError as e:
                self.events.error(f"recovery failed: {e}")
        return Button.RECOVER if now < self._recover_until else Button.NONE

    # ------------------------------------------------------------------ judging

    def _judge_time(self, late: int, missed: int) -> str | None:
        period = self.spec.dt * SECOND
        self._overruns = self._overruns + 1 if late > period else 0
        if self.machine.state in (Machine.RUN, Machine.PAUSE):  # a driver that arms or recovers may take its time
            late += missed
        if late > self.watch.late * SECOND:
            return f"control came {late / SECOND:.3f} s late"
        if self._overruns > self.watch.overruns:
            return f"control came more than a period late {self._overruns} times in a row"
        return None

    def _judge_tracking(self) -> str | None:
        if self.state is None or self.machine.state in (Machine.INIT, Machine.FAULT):
            return None
        arm = slice(None, -1) if self.spec.gripper else slice(None)  # a gripper that holds something is never there
        off = np.abs(self.follower.q - self.state.q)[arm]
        if off.max() <= self.watch.tracking:
            return None
        worst = int(off.argmax())
        joint, allowed = self.spec.joints[worst], self.watch.tracking
        return f"{joint} is {off[worst]:.3f} away from what it was told, {allowed} are allowed"

    # ------------------------------------------------------------------ telling

    def _announce(self, was: Machine) -> None:
        if self.machine.change is not None:
            _, now, reason = self.machine.change
            if now == Machine.FAULT:
                self.events.error(f"{was.name} -> FAULT: {reason}")
            else:
                self.events.info(f"{was.name} -> {now.name}{': ' + reason if reason else ''}")

    def _tell(self, now: int, due: int, leads: int, target: Joints, wish: Wish | None, clip: Clip) -> None:
        record = np.zeros((), self._commands.dtype)
        record["target"], record["sent"] = target, self.follower.q
        record["proposal"] = np.nan if wish is None else wish.q
        record["source"], record["state"], record["clipped"] = leads, self.machine.state, int(clip)
        record["chunk"], record["index"] = (-1, np.nan) if wish is None else (wish.chunk, wish.index)
        record["late"] = now - due
        self._commands.put(record, now)

    def run(self) -> None:
        """Ticks until the session ends; then stops the robot."""
        period = round(self.spec.dt * SECOND)
        due, missed = self.clock.now(), 0
        try:
            while not self.session.stopping:
                self.tick(due, missed)
                due += period
                behind = self.clock.now() - due
                missed = behind // period * period if behind > period else 0
                due += missed  # it is not made up for
                self.clock.sleep_until(due)
        finally:
            self._brake_to_the_end(due, period)

    def _brake_to_the_end(self, due: int, period: int) -> None:
        """Within limits to a standstill, then lets go."""
        try:
            while self.machine.state != Machine.INIT and self.follower.moving:
                self.follower.brake()
                self.robot.write(self.follower.q)
                due += period
                self.clock.sleep_until(due)
            self.robot.stop()
        except DeviceError as e:
            self.events.error(f"robot: {e}")
        finally:
            self.robot.close()
