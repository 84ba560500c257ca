"""A policy server without a policy: ``python -m tests.real_robot.trivial_server`` prints where it listens.

Its answer is the state, n times over; a request may hold ``sleep`` (s) to wait for, or ``fail``.
"""

from __future__ import annotations

if __name__ == "__main__":  # as the command does
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import argparse
import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from real_robot.remote.server import PolicyServer, Served


class Trivial:
    metadata: Mapping[str, Any] = {"policy": "trivial", "horizon": 8, "reset_pose": np.zeros(7)}

    def __init__(self) -> None:
        self.asked = 0

    def episode(self) -> dict[str, int]:
        return {"asked": 0}

    def infer(self, request: Mapping[str, Any], episode: dict[str, int]) -> dict[str, Any]:
        self.asked += 1
        episode["asked"] += 1
        if "sleep" in request:
            time.sleep(float(request["sleep"]))
        if "fail" in request:
            raise ValueError("failed on purpose")
        return {"actions": np.tile(request["state"], (8, 1)), "asked": np.int64(episode["asked"])}


@contextmanager
def serving(policy: Served, **options: Any) -> Iterator[str]:
    """In a thread of this process; yields its address."""
    server, stop, port = PolicyServer(policy, port=0, **options), asyncio.Event(), []
    ready, loop = threading.Event(), asyncio.new_event_loop()

    def listening(n: int) -> None:
        port.append(n)
        ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(stop, listening)))
    thread.start()
    assert ready.wait(20)
    try:
        yield f"ws://127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    server = PolicyServer(Trivial(), port=parser.parse_args().port)

    async def run() -> None:
        await server.run(asyncio.Event(), lambda port: print(f"ws://127.0.0.1:{port}", flush=True))

    asyncio.run(run())


if __name__ == "__main__":
    main()
