"""The policy server's own cost: round trips, turns of eight clients, pings while the policy thinks.

    .venv/bin/python benchmarks/serve_latency.py [--requests 500] [--rounds 5]

A policy that does nothing, in a process of its own, on this machine; requests of a state and two camera pictures of
224 x 224 x 3 bytes. Asked by RemotePolicy and by openpi's unmodified client (benchmarks/peers/install_openpi.sh), which
take turns. The server and RemotePolicy's process keep large buffers, as the commands do (launch/memory.py): without
that the 300 kB of every request are faulted in anew. The target for the median round trip is 1.5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

OURS = (
    "from launch.memory import keep_large_tensors; keep_large_tensors();"
    "from real_robot.remote.client import RemotePolicy; make = lambda a: RemotePolicy(a, timeout_s=60)"
)
OPENPI = (
    "from openpi_client.websocket_client_policy import WebsocketClientPolicy;"
    "make = lambda a: WebsocketClientPolicy(*a.removeprefix('ws://').split(':'))"
)
ROBOT = """
import json, sys, time
import numpy as np
policy = make(sys.argv[1])
camera = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
request = {"state": np.zeros(7, np.float32), "left": camera, "right": camera.copy()}
print("ready", flush=True)
for line in sys.stdin:
    n, seconds = json.loads(line)
    end, times = time.perf_counter() + seconds, []
    while len(times) < n and time.perf_counter() < end:
        begun = time.perf_counter()
        policy.infer(request)
        times.append(1e3 * (time.perf_counter() - begun))
    print(json.dumps(times), flush=True)
"""


class Robot:
    """A client in a process of its own."""

    def __init__(self, python: str, imports: str, address: str):
        command = [python, "-c", f"{imports}\n{ROBOT}", address]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self, n: int, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([n, seconds]) + "\n")
        self.process.stdin.flush()

    def ask(self, n: int, seconds: float = 60.0) -> list[float]:
        """Round trips, ms."""
        self.begin(n, seconds)
        return json.loads(self.read())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def round_trips(robots: dict[str, Robot], requests: int, rounds: int) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in robots}
    for robot in robots.values():
        robot.ask(50)  # not counted
    for _ in range(rounds):
        for name, robot in robots.items():
            times[name] += robot.ask(requests // rounds)
    rows = []
    for name, t in times.items():
        p50, p99 = np.percentile(t, (50, 99))
        print(f"  {name:14s} p50 {p50:.2f} ms, p99 {p99:.2f} ms, best {min(t):.2f} ms ({len(t)} round trips)")
        rows.append({"client": name, "p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "n": len(t)})
    return rows


def turns(address: str, n: int, seconds: float) -> dict:
    robots = [Robot(sys.executable, OURS, address) for _ in range(n)]
    for robot in robots:
        robot.begin(10**9, seconds)
    counts = [len(json.loads(robot.read())) for robot in robots]
    for robot in robots:
        robot.close()
    share = min(counts) / max(counts)
    print(f"  {n} clients at once, {seconds:g} s: {min(counts)} to {max(counts)} answers each, min / max {share:.2f}")
    return {"clients": n, "answers": counts, "min_max_share": round(share, 3)}


def pings(address: str, infer_s: float) -> dict:
    from websockets.sync.client import connect

    from real_robot.remote.codec import pack, unpack

    with connect(address, compression=None, max_size=None) as busy, connect(address) as other:
        busy.recv(), other.recv()
        busy.send(pack({"state": np.zeros(7), "sleep": infer_s}))
        times, end = [], time.perf_counter() + infer_s - 0.1
        while time.perf_counter() < end:
            for ws in (busy, other):
                begun = time.perf_counter()
                if not ws.ping().wait(infer_s):
                    raise TimeoutError("a ping was not answered while the policy was thinking")
                times.append(1e3 * (time.perf_counter() - begun))
            time.sleep(0.01)
        infer_ms = unpack(busy.recv())["server_timing"]["infer_ms"]
    p50, top = np.percentile(times, 50), max(times)
    print(f"  pings during an inference of {infer_ms:.0f} ms: {len(times)}, p50 {p50:.2f} ms, longest {top:.1f} ms")
    return {"pings": len(times), "p50_ms": round(p50, 3), "max_ms": round(top, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each client")
    parser.add_argument("--rounds", type=int, default=10, help="turns that the clients take")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="that the clients ask all at once")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    openpi = subprocess.run(
        [ROOT / "benchmarks/peers/install_openpi.sh"], stdout=-1, text=True, check=True
    ).stdout.strip()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    command = [sys.executable, "-m", "tests.real_robot.trivial_server"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        robots = {
            "RemotePolicy": Robot(sys.executable, OURS, address),
            "openpi-client": Robot(openpi, OPENPI, address),
        }
        rows: list[dict] = round_trips(robots, args.requests, args.rounds)
        for robot in robots.values():
            robot.close()
        rows += [turns(address, args.clients, args.seconds), pings(address, 2.0)]
    finally:
        server.kill()
        server.wait()
    print(f"load {os.getloadavg()[0]:.1f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
