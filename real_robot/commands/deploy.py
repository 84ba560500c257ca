"""A policy on a robot: ``python -m real_robot.deploy checkpoint=RUN_DIR robot=so101 teleop=keyboard mode=rtc``.

Shows what it does, records it (out=FOLDER), and gives way to a person at the teleoperation device at any moment.
With a simulated robot, trials=50 runs and counts trials by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.live import Live

from configs.loader import check_at_least, help_text, load_config
from data.errors import ConfigError
from envs.evaluate import wilson_interval
from launch.terminal import StopSignal, console
from real_robot.core.clock import MonotonicClock
from real_robot.core.streams import ERROR, WARNING, Session
from real_robot.core.supervisor import Supervisor
from real_robot.core.types import SECOND, RobotSpec
from real_robot.parts import last_gasp_of, parts_of, policy_of, spec_of
from real_robot.status import Status
from real_robot.trials import Trials

USAGE = """python -m real_robot.deploy checkpoint=RUN_DIR [robot=so101] [teleop=keyboard] [mode=rtc] [key=value ...]
       python -m real_robot.deploy checkpoint=RUN_DIR robot=ur_sim trials=50
       python -m real_robot.deploy server=ws://gpu-machine:8000 robot=... mode=rtc
       python -m real_robot.deploy checkpoint=RUN_DIR robot=mujoco trials=50 realtime=false
       python -m real_robot.deploy checkpoint=RUN_DIR robot=... dry_run=true"""
LOOK = SECOND // 25  # ns between two looks


def run_session(
    config: Mapping[str, Any],
    spec: RobotSpec,
    title: str,
    *,
    each: Callable[[int], bool],
    session: Session | None = None,
) -> tuple[Status, Supervisor]:
    """Starts everything and watches it until somebody ends it; returns what was seen.

    Args:
        config: see configs/deploy.yaml.
        spec: of the robot.
        title: for the terminal.
        each: called with now about 25 times a second; ends the session when it returns True.
        session: to run in; its own by default.
    """
    clock = MonotonicClock()
    with Supervisor(parts_of(config, spec), last_gasp=last_gasp_of(config["robot"]), session=session) as supervisor:
        status = Status(supervisor.session)
        live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        with StopSignal(talk=False) as stop:
            if live is not None:
                live.start()
            try:
                due = clock.now()
                while supervisor.watch() and stop.received is None and not each(clock.now()):
                    status.look()
                    for name, level, text in supervisor.news():
                        colour = "red" if level >= ERROR else "yellow" if level >= WARNING else None
                        console.print(f"{name}: {text}", style=colour)
                    if live is not None:
                        live.update(status.table(title, spec.control_hz))
                    due = max(due + LOOK, clock.now())
                    clock.sleep_until(due)
            finally:
                if live is not None:
                    live.stop()
        for name, _, text in supervisor.news():
            console.print(f"{name}: {text}")
    return status, supervisor


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("deploy", USAGE))
        return 0
    config = load_config("deploy", argv)
    check_at_least(1, config, ["trials", "every"])
    check_at_least(0, config, ["seed"])
    if (config["checkpoint"] is None) == (config["server"] is None):
        raise ConfigError("Give the policy: either checkpoint=RUN_DIR, or server=ws://HOST:PORT.")
    of_checkpoint = [key for key in ("features", "data", "black_box") if config[key] is not None]
    of_checkpoint += ["lerobot.units"] if config["lerobot"]["units"] else []
    if config["server"] is not None and of_checkpoint:
        raise ConfigError(f"{', '.join(of_checkpoint)}: that is for whoever loads the checkpoint, the server.")
    source = str(config["checkpoint"] or config["server"])
    if config["trials"] and config["teleop"] and config["teleop"].get("device"):
        raise ConfigError("trials= leads the robot home by itself: leave out teleop.")
    if not config["realtime"]:
        return _rehearse(config, source)
    spec = spec_of(config)
    trials, session = None, Session()
    if config["trials"]:
        seeds = _seeds(config)
        trials = Trials(
            session,
            spec,
            seeds,
            seconds=config["trial_seconds"],
            ready=lambda: session.has("chunk"),
            finished=_announce,
            hand=config["hand"],
        )

    def each(now: int) -> bool:
        if trials is not None:
            trials.step(now)
        return trials is not None and trials.done

    title = f"{source} on {spec.name}, {config['mode']}"
    try:
        status, supervisor = run_session(config, spec, title, each=each, session=session)
    finally:
        session.close()
    summary: dict[str, Any] = {"policy": source, "robot": spec.name, "mode": config["mode"]}
    summary |= {"inject": config["inject"], **status.summary(spec.control_hz)}
    if trials is not None:
        summary |= _counted(trials.results)
    _tell(config, summary)
    return 2 if supervisor.failed else 0


def _rehearse(config: Mapping[str, Any], source: str) -> int:
    if not config["trials"]:
        raise ConfigError("realtime=false is for trials: say how many, as trials=50.")
    if config["out"]:
        raise ConfigError("Trials in simulated time are not recorded: leave out realtime=false, or out=.")
    from real_robot.agent.process import build_client
    from real_robot.rehearsal import rehearse

    client = build_client(policy_of(config), config["mode"])
    try:
        found = rehearse(config, client, _seeds(config), finished=_announce)
    finally:
        client.close()
    summary = {"policy": source, "robot": found.spec.name, "mode": config["mode"], "inject": config["inject"]}
    _tell(config, summary | {"realtime": False, "jerk_rms": found.jerk} | _counted(found.trials))
    return 0


def _seeds(config: Mapping[str, Any]) -> list[int]:
    return [config["seed"] + i for i in range(config["trials"])]


def _announce(seed: int, success: bool, seconds: float) -> None:
    console.print(f"trial {seed}: {'success' if success else 'failure'} after {seconds:.1f} s")


def _counted(results: list[tuple[int, bool, float]]) -> dict[str, Any]:
    wins, n = sum(success for _, success, _ in results), len(results)
    interval = wilson_interval(wins, n) if n else None
    return {"success_rate": wins / n if n else None, "success_ci95": interval, "n_trials": n, "trials": results}


def _tell(config: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    if config["out"]:
        path = Path(config["out"])
        path.mkdir(parents=True, exist_ok=True)
        (path / "deploy.json").write_text(json.dumps(summary) + "\n")
    print(json.dumps(summary))
