"""The recorder under its usual load, and under kill -9: what is missing, and what it costs.

    python benchmarks/recorder.py [--seconds 60] [--kills 30] [--image jpeg] [--depth]

Two cameras (640 x 480 at 30 Hz, structured pictures with noise), state and command at 200 Hz, each written by a process
of its own as on a robot; one recorder. First undisturbed, then killed at random moments and started anew.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from real_robot.core.streams import REQUEST, Session, camera_dtype, command_dtype, state_dtype
from real_robot.core.types import Button
from real_robot.recorder import folder as folders
from real_robot.recorder.log import Log
from real_robot.recorder.process import run

CONTEXT = mp.get_context("spawn")
JOINTS = 6


def picture(i: int) -> np.ndarray:
    """(480, 640, 3): gradients that move, and noise as a camera's."""
    y, x = np.mgrid[:480, :640]
    smooth = np.stack([(x + 4 * i) % 256, (y + x // 2) % 256, (x * y // 256 + i) % 256], -1)
    noise = np.random.default_rng(i).normal(0, 3, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def camera(folder: str, name: str, fps: float, depth: bool) -> None:
    session = Session(folder)
    ring = session.reopen(f"camera.{name}", camera_dtype(480, 640, depth), round(4 * fps))
    data, pictures = np.zeros((), ring.dtype), [picture(i) for i in range(8)]
    if depth:
        data["depth"] = np.random.default_rng(0).normal(1.0, 0.002, (480, 640))
    write(session, ring, data, fps, lambda n: data["rgb"].__setitem__(..., pictures[n % 8]), "seq")


def joints(folder: str, name: str, hz: float) -> None:
    session = Session(folder)
    dtype = state_dtype(JOINTS) if name == "state" else command_dtype(JOINTS)
    ring = session.reopen(name, dtype, round(20 * hz))
    write(session, ring, np.zeros((), dtype), hz, lambda n: None, "q" if name == "state" else "sent")


def write(session: Session, ring: Any, data: np.ndarray, hz: float, change: Any, counter: str) -> None:
    begin = time.monotonic()
    while not session.stopping:
        n = ring.newest + 1
        change(n)
        data[counter] = n
        ring.put(data, time.monotonic_ns())
        time.sleep(max(0.0, begin + n / hz - time.monotonic()))


def start_recorder(session: Session, out: Path, image: str) -> Any:
    process = CONTEXT.Process(target=run, args=(str(session.folder),), kwargs={"out": str(out), "image": image})
    process.start()
    return process


def wait_for(what: Any) -> None:
    end = time.monotonic() + 60
    while not what():
        if time.monotonic() > end:
            raise SystemExit("the recorder does not do what it should")
        time.sleep(0.02)


def episode(session: Session, out: Path, args: argparse.Namespace, *, kills: int) -> dict[str, Any]:
    """One episode; what was measured."""
    request = session.reopen("request", REQUEST, 64)
    number, process = len(folders.episodes(out)), start_recorder(session, out, args.image)
    wait_for(lambda: session.has("recorder") and session.attach("recorder").newest > 0)
    request.put((int(Button.START),), time.monotonic_ns())
    wait_for(lambda: len(folders.episodes(out)) > number)
    folder, rng = folders.find(out, number), random.Random(0)
    wait_for((folder / "log").exists)
    shares, sizes, begin, torn = [], [], time.monotonic(), 0
    if not kills:
        seen = psutil.Process(process.pid)
        seen.cpu_percent()
        while time.monotonic() - begin < args.seconds:
            time.sleep(1.0)
            shares.append(seen.cpu_percent())
            sizes.append((folder / "log").stat().st_size)
    downtime = []
    for _ in range(kills):
        size = (folder / "log").stat().st_size
        wait_for(lambda size=size: (folder / "log").stat().st_size > size)
        time.sleep(rng.uniform(0, args.alive))
        killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        log = Log(folder / "log")
        torn += log.lost > 0
        process = start_recorder(session, out, args.image)
        wait_for(lambda size=log.size + log.lost: (folder / "log").stat().st_size > size)
        downtime.append(time.monotonic() - killed)
    request.put((int(Button.STOP),), time.monotonic_ns())
    wait_for(lambda: folders.is_done(folder))
    meta = folders.read_meta(folder)
    log = Log(folder / "log")
    gaps = {name: 0 for name in meta["streams"]}
    for name in gaps:
        found = [e.n for e in log.index if log.streams[e.stream].name == name]
        gaps[name] = found[-1] - found[0] + 1 - len(found)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    rate = (sizes[-1] - sizes[0]) / (len(sizes) - 1) / 1e6 if len(sizes) > 1 else 0.0
    return {"meta": meta, "gaps": gaps, "cpu": shares, "mb_s": rate, "torn": torn, "downtime": downtime}


def report(title: str, found: dict[str, Any]) -> None:
    meta = found["meta"]
    print(f"\n{title}: {folders.seconds(meta):.1f} s, load {os.getloadavg()[0]:.1f}")
    print("| stream | records | Hz | missed | gaps in the numbers |\n|---|---|---|---|---|")
    for name, s in meta["streams"].items():
        print(f"| {name} | {s['records']} | {s['hz']:.1f} | {s['missed']} | {found['gaps'][name]} |")
    if found["cpu"]:
        shares = sorted(found["cpu"])
        print(f"CPU of one core: median {statistics.median(shares):.0f} %, most in a second {shares[-1]:.0f} %; "
              f"{found['mb_s']:.1f} MB/s")  # fmt: skip
    if found["downtime"]:
        times = sorted(found["downtime"])
        print(f"{len(times)} kills, {found['torn']} of them within a record; killed until recording again: "
              f"median {statistics.median(times):.1f} s, longest {times[-1]:.1f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--alive", type=float, default=4.0, help="s, at most, from recording again to the next kill")
    parser.add_argument("--image", choices=("jpeg", "png", "raw"), default="jpeg")
    parser.add_argument("--depth", action="store_true", help="both cameras see depth too")
    parser.add_argument("--out", type=Path, default=None, help="where to record; by default a folder that is deleted")
    args = parser.parse_args()
    session = Session()
    folder = str(session.folder)
    writers = [CONTEXT.Process(target=camera, args=(folder, name, 30.0, args.depth)) for name in ("front", "wrist")]
    writers += [CONTEXT.Process(target=joints, args=(folder, name, 200.0)) for name in ("state", "command")]
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        try:
            for writer in writers:
                writer.start()
            wait_for(lambda: all(session.has(n) for n in ("camera.front", "camera.wrist", "state", "command")))
            time.sleep(1.0)
            report("undisturbed", episode(session, out, args, kills=0))
            if args.kills:
                report("killed", episode(session, out, args, kills=args.kills))
        finally:
            session.stop()
            for writer in writers:
                writer.join()
            session.close()


if __name__ == "__main__":
    main()
