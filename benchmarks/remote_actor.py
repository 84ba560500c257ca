"""How long a robot stands between two decisions of a fine-tuning run: actor where it learns, or on the robot's machine.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/remote_actor.py [--delays 0 0.05] [--steps 240] [--hold 4]

``real_robot.live robot=mujoco`` and ``train.py algo=residual task=live`` in processes of their own, in real time, with
a network between them that holds everything back for so long each way. Read from the robot's session: when chunks
begin. A decision lasts ``hold`` actions at 10 Hz; what is more than that, the robot stands. Between episodes nothing is
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from real_robot.core.streams import Session
from real_robot.core.types import SECOND
from real_robot.simulators.network import Network

ROOT = Path(__file__).resolve().parents[1]
HZ, PAUSE = 10.0, 2.0  # actions per second; s that only the way home takes
BRIEF = (
    "task=robot obs=state obs.keys=[agent_pos,cube] network.hidden_dim=32 data.n_demos=1 algo.train_steps=20 "
    "eval.n_episodes=1 eval.n_videos=0"
)
LIVE = (
    "algo=residual task=live task.episode_length=80 algo.learning_starts=16 algo.warmup_steps=40 algo.demos=false "
    "eval.n_episodes=0 eval.every_n_episodes=0"
)
PATIENT = "priority=null safety.watch.robot=2.0 safety.watch.late=5.0 safety.watch.overruns=400"


def train(words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *words.split()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said[-3000:])


def measure(folder: Path, base: Path, actor: str, delay: float, steps: int, hold: int) -> dict[str, float]:
    """Of one run, ms: how long the robot stood before a decision, and what a decision took in all."""
    shm = folder / f"shm-{actor}-{delay}"
    shm.mkdir()
    robot = subprocess.Popen(
        [sys.executable, "-u", "-m", "real_robot.live", "robot=mujoco", "port=0", *PATIENT.split()],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "DEFT_SHM": str(shm)},
    )  # fmt: skip
    assert robot.stdout is not None
    for line in iter(robot.stdout.readline, ""):
        if "listening on" in line:
            break
    network = Network(line.split()[-1], delay)
    options = f"base={base} task.server={network.address} task.actor={actor} algo.env_steps={steps} algo.hold={hold}"
    begun, last = [], 0
    try:
        learner = train(f"{LIVE} {options} run_dir={folder / f'{actor}-{delay}'}")
        ring = Session(next(shm.glob("deft-*"))).attach("chunk")
        while learner.poll() is None:
            for record in ring.since(last)[0]:
                last = record.n
                points = record.data["actions"][: int(record.data["length"])]
                if len(points) == hold + 1 and np.ptp(points, axis=0).any():
                    begun.append(record.t / SECOND)
            time.sleep(0.02)
        finish(learner)
    finally:
        network.close()
        robot.send_signal(signal.SIGINT)
        robot.communicate()
    took = np.diff(begun)
    took = 1e3 * took[took < hold / HZ + PAUSE]
    stood = took - 1e3 * hold / HZ
    return {
        "actor": actor, "delay_ms": 1e3 * delay, "decisions": len(took), "stood_ms_p50": round(np.median(stood), 1),
        "stood_ms_p95": round(np.percentile(stood, 95), 1), "decision_ms_p50": round(np.median(took), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.05], help="s, each way")
    parser.add_argument("--steps", type=int, default=240, help="actions per run")
    parser.add_argument("--hold", type=int, default=4, help="actions per decision")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(train(f"{BRIEF} data.root={folder} run_dir={folder / 'base'}"))
        for delay in given.delays:
            for actor in ("learner", "robot"):
                found = measure(folder, folder / "base", actor, delay, given.steps, given.hold)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
