"""How long an arm of servos takes to read and write: ``python -m benchmarks.servo_bus [port=... calibration=...]``.

With no port it talks to the simulated SO-101, over a pseudo-terminal: the time of the SDK and of ours, without the
wire. A real bus at 1 Mbaud adds about 2 ms, and what the USB adapter keeps answers back for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from real_robot.core.options import options
from real_robot.robots.so101 import SO101


def measure(robot: SO101, seconds: float) -> None:
    """Reads and writes at the robot's rate, holding where it is."""
    robot.connect()
    q, times = robot.read().q, []
    start = time.monotonic()
    while (now := time.monotonic()) - start < seconds:
        a = time.perf_counter()
        robot.read()
        b = time.perf_counter()
        robot.write(q)
        times.append((b - a, time.perf_counter() - b))
        time.sleep(max(0.0, robot.spec.dt - (time.monotonic() - now)))
    robot.close()
    p50, p99 = np.percentile(np.array(times) * 1000, [50, 99], axis=0)
    print(f"{len(times)} periods, {robot.lost} lost; read p50 {p50[0]:.2f} p99 {p99[0]:.2f} ms, "
          f"write p50 {p50[1]:.2f} p99 {p99[1]:.2f} ms")  # fmt: skip


def main() -> None:
    """One line."""
    o = options(sys.argv[1:], {"seconds": 5.0, "port": "", "calibration": ""})
    if o["port"]:
        measure(SO101(o["port"], o["calibration"]), o["seconds"])
        return
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "so101.json"
        command = [sys.executable, "-m", "real_robot.simulators.feetech", f"calibration={calibration}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as simulator:
            assert simulator.stdout is not None
            port = simulator.stdout.readline().split()[-1]
            try:
                measure(SO101(port, calibration), o["seconds"])
            finally:
                simulator.kill()


if __name__ == "__main__":
    main()
