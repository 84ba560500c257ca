"""How late the control loop is, at 200 Hz, while a policy's inference burns the other cores.

    python benchmarks/control_loop.py [--seconds 60] [--hz 200] [--burners 1]

Runs the control process of ``robot=mujoco`` twice, without and with SCHED_FIFO, a hand leading all the time, and
``--burners`` processes of matrix products beside it. Lateness is that of a tick's begin; a deadline is missed where a
tick begins after the next one was due. Without the right to SCHED_FIFO the second line says so.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import time
from typing import Any

import numpy as np

from configs.loader import load_config
from real_robot.core.streams import REQUEST, teleop_dtype
from real_robot.core.supervisor import Supervisor
from real_robot.core.types import SECOND, Button
from real_robot.parts import parts_of, spec_of


def burn() -> None:
    """Inference, as far as a scheduler sees it."""
    import torch

    torch.set_num_threads(1)
    x = torch.randn(512, 512)
    while True:
        x = x @ x
        x = x / x.norm()


def measure(hz: float, seconds: float, priority: int | None) -> tuple[np.ndarray, list[str]]:
    """(T,) ns of lateness of each tick, and what the control process said of its priority."""
    config = load_config("deploy", ["checkpoint=none", f"robot.control_hz={hz}", "sensors={}"])
    config |= {"checkpoint": None, "priority": priority, "sensors": {}}
    spec, late, seen = spec_of(config), [], 0
    with Supervisor(parts_of(config, spec)) as supervisor:
        session = supervisor.session
        request, hand = session.create("request.test", REQUEST, 64), session.create("teleop", teleop_dtype(spec.n), 256)
        while not session.has("command"):
            time.sleep(0.01)
        ring, end, begun = session.attach("command"), time.monotonic() + seconds + 2, time.monotonic() + 2
        while (now := time.monotonic()) < end:
            request.put(np.array((int(Button.ENABLE),), REQUEST), time.monotonic_ns())
            target = spec.home + 0.1 * np.sin(now)
            hand.put(np.array((True, target, 0), hand.dtype), time.monotonic_ns())
            records, missed = ring.since(seen)
            seen += missed + len(records)
            assert not missed
            late += [int(r.data["late"]) for r in records if r.t > begun * SECOND]
            time.sleep(0.05)
        said = [text for name, _, text in supervisor.news() if name == "control" and "FIFO" in text]
    return np.array(late), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hz", type=float, default=200.0)
    parser.add_argument("--burners", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    given = parser.parse_args()
    burners: list[Any] = [mp.get_context("spawn").Process(target=burn, daemon=True) for _ in range(given.burners)]
    for burner in burners:
        burner.start()
    load = f"{given.burners} of {os.cpu_count()} cores burning"
    print(f"{given.hz:g} Hz, {load}, {given.seconds:g} s each\n")
    print("| | ticks | late p50 ms | p99 ms | max ms | missed |\n|---|---|---|---|---|---|")
    for name, priority in (("without FIFO", None), ("SCHED_FIFO", 60)):
        late, said = measure(given.hz, given.seconds, priority)
        p50, p99, most = (np.percentile(late, q) / 1e6 for q in (50, 99, 100))
        missed = int((late > SECOND / given.hz).sum())
        print(f"| {name} | {len(late)} | {p50:.3f} | {p99:.3f} | {most:.3f} | {missed} |{' '.join(said)}", flush=True)
    for burner in burners:
        burner.kill()


if __name__ == "__main__":
    main()
