"""A robot to learn on: ``python -m real_robot.live robot=so101 teleop=browser host=0.0.0.0``, and on another machine
``python train.py algo=residual base=RUN_DIR task=live task.server=ws://robot:8200``.

A person is beside it: enables it (ENABLE), begins every episode once the scene is ready (START), says what a success is
(SUCCESS; FAILURE where nothing can be saved any more), takes over where it has to be, and helps it up (RECOVER).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from configs.loader import check_at_least, help_text, load_config
from data.construct import load_named
from data.errors import ConfigError
from launch.terminal import console
from real_robot.commands.deploy import run_session
from real_robot.core.streams import Session
from real_robot.live.acting import device_of
from real_robot.live.robot import LiveRobot
from real_robot.live.served import ServedRobot
from real_robot.parts import spec_of
from real_robot.remote.server import PolicyServer
from real_robot.serve import is_private

MAX_MESSAGE = 256 << 20  # bytes; weights of a learned encoder come in one piece

USAGE = """python -m real_robot.live robot=so101 teleop=browser [host=0.0.0.0] [port=8200] [key=value ...]
       python -m real_robot.live robot=mujoco"""


class Serving:
    """A server in a thread of its own.

    Attributes:
        failed: what ended it.
    """

    def __init__(self, server: PolicyServer):
        self.failed: BaseException | None = None
        self._server, self._stop, self._loop = server, asyncio.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._server.run(self._stop, self._listening))
        except BaseException as e:
            self.failed = e

    def _listening(self, port: int) -> None:
        print(f"listening on ws://{self._server.host}:{port}", flush=True)

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)


def live_robot(config: dict[str, Any], session: Session) -> LiveRobot:
    """Of a configuration. Raises ConfigError where nobody could say what a success is, or help the robot up."""
    simulated = bool(config["simulator"]) or config["robot"]["type"] == "mujoco"
    if not simulated and not (config["teleop"] or {}).get("device"):
        raise ConfigError("A robot learns with a person beside it: choose teleop=browser, keyboard, gamepad, ...")
    safety = config["safety"]
    return LiveRobot(
        session,
        spec_of(config),
        simulated=simulated,
        reward=load_named({}, config["reward"], "reward") if config["reward"] else None,
        hand=config["hand"],
        max_age=safety["max_age"],
        action_latency=safety["action_latency"],
    )


def actor_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``ServedActor``. Raises ConfigError: a device that cannot be had."""
    device = device_of(options["device"])
    return {"device": device, "threads": options["threads"], "keep": round(options["keep_mb"] * 1e6)}


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("live", USAGE))
        return 0
    config = load_config("live", argv)
    check_at_least(0, config, ["port"])
    check_at_least(1, config, ["actor.threads", "actor.keep_mb"])
    session = Session()
    try:
        robot = live_robot(config, session)
        if config["api_key"] is None and not is_private(config["host"]):
            console.print("warning: no API key: whoever reaches this port can lead the robot (set DEFT_API_KEY)")
        served = ServedRobot(robot, actor_options(config["actor"]))
        server = PolicyServer(
            served,
            host=config["host"],
            port=config["port"],
            api_key=None if config["api_key"] is None else str(config["api_key"]),
            max_message=MAX_MESSAGE,
            say=lambda line: console.print(f"{time.strftime('%H:%M:%S')} {line}"),
        )
        with closing(served), Serving(server) as serving:
            title = f"{robot.spec.name}, to learn on"
            status, supervisor = run_session(
                config, robot.spec, title, each=lambda now: serving.failed is not None, session=session
            )
        if serving.failed is not None:
            raise serving.failed
    finally:
        session.close()
    print(json.dumps({"robot": robot.spec.name, **status.summary(robot.spec.control_hz)}))
    return 2 if supervisor.failed else 0
