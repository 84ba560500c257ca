"""Demonstrations: ``python -m real_robot.record out=recordings/cubes robot=so101 teleop=leader``.

START and STOP begin and end an episode; SUCCESS, FAILURE and DISCARD label the last one. Nothing that is recorded is
lost when any of the processes, or the machine's user, ends it. Then: ``python -m real_robot.episodes list FOLDER``.
"""

from __future__ import annotations

import json
from pathlib import Path

from configs.loader import check_at_least, help_text, load_config
from data.errors import ConfigError
from launch.terminal import console
from real_robot.commands.deploy import run_session
from real_robot.parts import spec_of
from real_robot.recorder.folder import episodes, is_done

USAGE = """python -m real_robot.record out=FOLDER [robot=so101] [teleop=browser] [key=value ...]
       python -m real_robot.record out=FOLDER robot=ur_sim teleop=hand episodes=30"""


def finished(out: str) -> list[Path]:
    """Folders of the episodes that have ended and were not discarded."""
    return [folder for folder in episodes(out) if is_done(folder)]


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("record", USAGE))
        return 0
    config = load_config("record", argv)
    check_at_least(1, config, ["episodes"])
    if not (config["teleop"] or {}).get("device"):
        raise ConfigError("Nobody leads: choose teleop=browser, keyboard, gamepad, spacemouse, leader or hand.")
    spec, out, wanted = spec_of(config), config["out"], config["episodes"]
    before = len(finished(out))

    def each(now: int) -> bool:
        return wanted is not None and len(finished(out)) - before >= wanted

    status, supervisor = run_session(config, spec, f"recording into {out}", each=each)
    console.print(f"{len(finished(out)) - before} episodes; python -m real_robot.episodes list {out}")
    print(json.dumps({"out": str(config["out"]), "robot": spec.name, **status.summary(spec.control_hz)}))
    return 2 if supervisor.failed else 0
