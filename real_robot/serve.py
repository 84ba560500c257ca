"""Serves a policy to robots: ``python -m real_robot.serve checkpoint=RUN_DIR port=8000``.

The protocol is openpi's (``real_robot/remote/server.py``): its unmodified client can ask, and so can RemotePolicy.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import asyncio
import ipaddress
import json
import signal
import time

from configs.loader import check_at_least, help_text, load_config
from data.errors import ConfigError
from launch.terminal import console, run_main
from real_robot.remote.server import Counts, PolicyServer
from real_robot.remote.serving import ServedPolicy, load_served

USAGE = """python -m real_robot.serve checkpoint=RUN_DIR [host=0.0.0.0] [port=8000] [key=value ...]
       DEFT_API_KEY=... python -m real_robot.serve checkpoint=RUN_DIR host=0.0.0.0
       python -m real_robot.serve checkpoint=RUN_DIR execution.name=rtc"""


def is_private(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def describe(served: ServedPolicy) -> str:
    """What a person should compare with the robot before it moves."""
    m = served.metadata
    shows = ", ".join(f"{key} {tuple(f['shape'])} {f['dtype']}" for key, f in m["observation"].items())
    return (
        f"{m['task']}: {shows} -> {m['n_action_steps']} of {m['horizon']} actions {tuple(m['action']['shape'])} in "
        f"[{m['action']['low']:g}, {m['action']['high']:g}] at {m['control_hz']:g} Hz"
    )


async def serve(server: PolicyServer) -> Counts:
    """Until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def listening(port: int) -> None:
        print(f"listening on ws://{server.host}:{port}", flush=True)

    return await server.run(stop, listening)


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("serve", USAGE))
        return 0
    config = load_config("serve", argv)
    check_at_least(1, config, ["max_message_mb", "max_clients", "n_action_steps", "policy.n_inference_steps"])
    check_at_least(0, config, ["port", "seed", "execution.delay"])
    if config["api_key"] is not None and not str(config["api_key"]).strip():
        raise ConfigError("The API key is empty: set DEFT_API_KEY to one, or unset it.")
    options = {key: {k: v for k, v in config[key].items() if v is not None} for key in ("policy", "execution")}
    served = load_served(
        config["checkpoint"],
        device=config["device"],
        policy=options["policy"],
        execution=options["execution"],
        n_action_steps=config["n_action_steps"],
        black_box=config["black_box"],
        features=config["features"],
        data=config["data"],
        lerobot=config["lerobot"],
        compiled=config["compile"],
        seed=config["seed"],
    )
    begun = time.perf_counter()
    served.warm_up()
    console.print(describe(served))
    console.print(f"warmed up in {time.perf_counter() - begun:.1f} s; checkpoint {served.metadata['checkpoint'][:12]}")
    if config["api_key"] is None and not is_private(config["host"]):
        console.print("warning: no API key: whoever reaches this port can ask the policy (set DEFT_API_KEY)")
    server = PolicyServer(
        served,
        host=config["host"],
        port=config["port"],
        api_key=None if config["api_key"] is None else str(config["api_key"]),
        max_message=config["max_message_mb"] << 20,
        max_clients=config["max_clients"],
        say=lambda line: console.print(f"{time.strftime('%H:%M:%S')} {line}"),
    )
    counts = asyncio.run(serve(server))
    print(json.dumps(vars(counts)))
    return 0


if __name__ == "__main__":
    run_main(main)
