"""``python -m real_robot.simulators.ur host=127.0.0.1``: a UR5e with its controller, on the ports of the real one.

Speaks what ``ur-rtde`` and Universal Robots' own client speak: RTDE (30004), scripts (30001-30003), dashboard (29999).
Several run side by side on 127.0.0.1, 127.0.0.2, ... Further options, as name=value:

    session=FOLDER     of a running session, where ring "world" is published; a new one by default
    seed=0             of the first episode
    unlock_after=5     s that a protective stop lasts at least
    gripper_output=0   standard digital output that closes the gripper
    remote=true        whether the pendant stands at remote control

Faults, and all else that no client can ask for, go through the session's port:
``ask(folder, cable=False | delay_ms=200 | emergency=True | remote=False | reset=SEED | protective_stop="why")``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import sys
import time
from typing import Any

from real_robot.core.kinematics import Kinematics
from real_robot.core.options import defaults_of, options
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, DeviceError
from real_robot.robots.spec import spec_from_model
from real_robot.simulators import ur_rtde as rtde
from real_robot.simulators.scene import Scene, model_path
from real_robot.simulators.ur_controller import Controller, Safety
from real_robot.simulators.world import World

RTDE_PORT, DASHBOARD_PORT, SCRIPT_PORTS = 30004, 29999, (30001, 30002, 30003)
RATE = 500  # Hz
_HELD_UP = SECOND // 50  # of lateness, from which it is the simulator that was not scheduled
_BACKLOG = 1 << 16  # bytes: a client that does not read loses packets from here on, as on a real wire
_SAFETY = {
    Safety.NORMAL: "NORMAL",
    Safety.PROTECTIVE_STOP: "PROTECTIVE_STOP",
    Safety.ROBOT_EMERGENCY_STOP: "ROBOT_EMERGENCY_STOP",
}


class Wire:
    """The cable: may be out, may be long."""

    def __init__(self):
        self.connected = asyncio.Event()
        self.connected.set()
        self.delay = 0.0  # s, of what the controller sends

    def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Now, later or never."""
        if not self.connected.is_set() or writer.is_closing():
            return
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._write, writer, data)
        else:
            self._write(writer, data)

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing() and writer.transport.get_write_buffer_size() < _BACKLOG:
            writer.write(data)


class Client:
    """One connection of the real-time data exchange."""

    def __init__(self, controller: Controller, wire: Wire, writer: asyncio.StreamWriter):
        self.controller, self.wire, self.writer = controller, wire, writer
        self._getters: list[rtde.Getter] = []
        self._outputs = rtde.Recipe((), ())
        self._inputs: dict[int, rtde.Recipe] = {}
        self._every, self._count = 1, 0
        self._started = False

    def _send(self, kind: int, payload: bytes) -> None:
        self.wire.send(self.writer, rtde.packet(kind, payload))

    def stream(self, ticks: int) -> None:
        """After ``ticks`` control periods: one packet if it is due."""
        self._count += ticks
        if self._started and self._count >= self._every:
            self._count %= self._every
            values = [get(self.controller) for get in self._getters]
            self._send(rtde.DATA_PACKAGE, b"\x01" + self._outputs.pack(values))

    def receive(self, kind: int, payload: bytes) -> None:
        """One packet of the client."""
        if kind == rtde.REQUEST_PROTOCOL_VERSION:
            self._send(kind, b"\x01")
        elif kind == rtde.GET_URCONTROL_VERSION:
            self._send(kind, struct.pack(">4I", 5, 11, 1, 108318))
        elif kind == rtde.SETUP_OUTPUTS:
            (hz,) = struct.unpack(">d", payload[:8])
            self._setup_outputs(hz, [n for n in payload[8:].decode().split(",") if n])
        elif kind == rtde.SETUP_INPUTS:
            self._setup_inputs([n for n in payload.decode().split(",") if n])
        elif kind in (rtde.START, rtde.PAUSE):
            self._started = kind == rtde.START and bool(self._getters)
            self._send(kind, b"\x01" if self._started or kind == rtde.PAUSE else b"\x00")
        elif kind == rtde.DATA_PACKAGE and payload and payload[0] in self._inputs:
            rtde.apply(self.controller, self._inputs[payload[0]].unpack(payload[1:]))

    def _setup_outputs(self, hz: float, names: list[str]) -> None:
        found = [rtde.output(name) for name in names]
        types = [f[0] if f is not None else "NOT_FOUND" for f in found]
        if None not in found:
            self._getters = [f[1] for f in found if f is not None]
            self._outputs = rtde.Recipe(names, types)
            self._every = max(1, round(RATE / hz))
        self._send(rtde.SETUP_OUTPUTS, b"\x01" + ",".join(types).encode())

    def _setup_inputs(self, names: list[str]) -> None:
        types = [rtde.input_type(name) or "NOT_FOUND" for name in names]
        number = 0
        if "NOT_FOUND" not in types:
            number = len(self._inputs) + 1
            self._inputs[number] = rtde.Recipe(names, types)
        self._send(rtde.SETUP_INPUTS, bytes([number]) + ",".join(types).encode())


class Server:
    """All ports of one controller."""

    def __init__(self, controller: Controller, session: Session):
        self.controller, self.session = controller, session
        self.wire = Wire()
        self._clients: set[Client] = set()

    async def serve(self, host: str) -> None:
        """Until the session ends."""
        servers = [
            (RTDE_PORT, self._rtde),
            (DASHBOARD_PORT, self._dashboard),
            *((p, self._script) for p in SCRIPT_PORTS),
        ]
        for port, handler in servers:
            try:
                await asyncio.start_server(handler, host, port)
            except OSError as e:
                raise DeviceError(f"{host}:{port} cannot be listened at ({e}): does another controller run there? "
                                  "Several may, each at an address of its own (host=127.0.0.2).") from None  # fmt: skip
        folder = self.session.folder
        print(
            f"UR5e at {host}: RTDE {RTDE_PORT}, scripts 30003, dashboard {DASHBOARD_PORT}; session {folder}", flush=True
        )
        world, last = self.controller.world, 0.0
        while not self.session.stopping:
            for message in world.messages():
                self._ask(message)
            episode = world.episode
            now = time.monotonic_ns()
            if now - world.t > _HELD_UP:
                self.controller.excuse((now - world.t) / SECOND)
            ticks = world.advance(now, self.controller.tick)
            for client in self._clients if ticks else ():
                client.stream(ticks)
            if world.episode != episode:
                self.controller.place()
            last = max(last + 1 / RATE, time.monotonic() - 5 / RATE)
            await asyncio.sleep(max(0.0, last - time.monotonic()))

    def _ask(self, message: dict[str, Any]) -> None:
        c = self.controller
        for key, value in message.items():
            if key == "cable":
                self.wire.connected.set() if value else self.wire.connected.clear()
            elif key == "delay_ms":
                self.wire.delay = float(value) / 1000
            elif key == "emergency":
                c.emergency(bool(value))
            elif key == "remote":
                c.remote = bool(value)
            elif key == "protective_stop":
                c.protective_stop(str(value)) if value else c.unlock()
            else:
                print(f"unknown message {key}={value}", file=sys.stderr, flush=True)

    async def _rtde(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(self.controller, self.wire, writer)
        self._clients.add(client)
        try:
            while True:
                size, kind = rtde.HEADER.unpack(await reader.readexactly(rtde.HEADER.size))
                payload = await reader.readexactly(max(0, size - rtde.HEADER.size))
                await self.wire.connected.wait()
                client.receive(kind, payload)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except (struct.error, UnicodeDecodeError) as e:
            print(f"malformed packet, connection closed: {e}", file=sys.stderr, flush=True)
        finally:
            self._clients.discard(client)
            writer.close()

    async def _script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A script ends with a line "end"; only ur-rtde's control script is understood."""
        script = b""
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                script += data
                if script.rstrip().endswith(b"\nend") and script.lstrip().startswith(b"def "):
                    await self.wire.connected.wait()
                    if b"rtde_control" in script[:200]:
                        await asyncio.sleep(0.05)  # the real one takes that long to compile it
                        self.controller.start_program()
                    else:
                        print("a script that is not ur-rtde's is not simulated", file=sys.stderr, flush=True)
                    script = b""
        writer.close()

    async def _dashboard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire.send(writer, b"Connected: Universal Robots Dashboard Server\n")
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                await self.wire.connected.wait()
                self.wire.send(writer, (self._answer(line.decode(errors="replace").strip()) + "\n").encode())
                if line.strip() == b"quit":
                    break
        writer.close()

    def _answer(self, line: str) -> str:
        c = self.controller
        running = str(c.running).lower()
        answers = {
            "PolyscopeVersion": "URSoftware 5.11.1.108318 (Nov 24 2021)",
            "get serial number": "20235500123",
            "get robot model": "UR5",
            "is in remote control": str(c.remote).lower(),
            "robotmode": f"Robotmode: {'POWER_OFF' if c.safety == Safety.ROBOT_EMERGENCY_STOP else 'RUNNING'}",
            "safetymode": f"Safetymode: {_SAFETY[c.safety]}",
            "safetystatus": f"Safetystatus: {_SAFETY[c.safety]}",
            "running": f"Program running: {running}",
            "programState": "PLAYING rtde_control" if c.running else "STOPPED <unnamed>",
            "close safety popup": "closing safety popup",
            "close popup": "closing popup",
            "power on": "Powering on",
            "brake release": "Brake releasing",
            "quit": "Disconnected",
        }
        if line in answers:
            return answers[line]
        if line == "stop":
            c.stop_program("stopped by the dashboard")
            return "Stopped"
        if line == "unlock protective stop":
            return "Protective stop releasing" if c.unlock() else (
                "Cannot unlock protective stop until 5s after occurrence. Always inspect cause of protective stop "
                "before unlocking")  # fmt: skip
        if line.startswith(("popup", "addToLog")):
            return "showing popup" if line.startswith("popup") else "Added log message"
        return f"could not understand: '{line}'"


def run(
    host: str = "127.0.0.1",
    *,
    session: str | None = None,
    seed: int = 0,
    unlock_after: float = 5.0,
    gripper_output: int = 0,
    remote: bool = True,
) -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if session is not None else signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of ``finally``
    place = Session(session)
    try:
        spec = spec_from_model("ur5e", model_path("ur5e"), tcp="flange")
        assert spec.model is not None
        world = World(spec.model, spec.joints, gripper=True, scene=Scene(), seed=seed, start=time.monotonic_ns())
        world.publish(place)
        controller = Controller(world, Kinematics(spec), gripper_output=gripper_output, unlock_after=unlock_after,
                                remote=remote)  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(Server(controller, place).serve(host))
    finally:
        place.close()


if __name__ == "__main__":
    run(**options(sys.argv[1:], defaults_of(run)))
