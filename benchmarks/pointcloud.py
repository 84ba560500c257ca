"""Point-cloud observation: ray casting against GL depth images with farthest-point sampling, same cameras, same number.

    python benchmarks/pointcloud.py [task ...]

Both sides end with 512 points of the cropped scene from two cameras. The GL side renders two 128 x 128 depth images
(without shadows, reflections or multisampling, as fast as MuJoCo's GL goes), back-projects, crops, and thins by
farthest-point sampling; it is skipped where there is no GL. The sides are interleaved; medians are printed, and the
median of CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.cloud import depth_to_cloud
from envs.metaworld import DEFAULT_CAMERAS, MetaWorldEnv
from envs.render import GLRenderer, backend

N_POINTS, SIZE, ROUNDS = 512, 128, 40
TASKS = ("door-open-v3", "pick-place-v3", "shelf-place-v3", "hammer-v3")


def farthest_points(points: np.ndarray, n: int) -> np.ndarray:
    """Plain farthest-point sampling, float32."""
    points = points.astype(np.float32)
    picked = np.zeros(n, np.int64)
    distance = np.full(len(points), np.inf, np.float32)
    for i in range(1, n):
        d = points - points[picked[i - 1]]
        np.minimum(distance, np.einsum("ij,ij->i", d, d), out=distance)
        picked[i] = distance.argmax()
    return points[picked]


def timed(work: Callable[[], np.ndarray]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def run(task: str, gl_name: str) -> None:
    env = MetaWorldEnv(task, n_points=N_POINTS)
    env.reset(0)
    for _ in range(30):  # the hand is at the object
        env.step(env.expert_action())
    sensor = env.sensor
    gl = GLRenderer(env.model, env.data, SIZE, SIZE, gl_name) if gl_name != "raycast" else None

    def by_gl() -> np.ndarray:
        assert gl is not None
        clouds = [depth_to_cloud(gl.depth(n), c) for n, c in zip(DEFAULT_CAMERAS, sensor.cameras, strict=True)]
        points = np.concatenate(clouds)
        return farthest_points(points[sensor.workspace.keep(points)], N_POINTS)

    sides: dict[str, Callable[[], np.ndarray]] = {"ray casting": sensor.points}
    if gl is not None:
        sides[f"GL depth ({gl_name}) + FPS"] = by_gl
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, work in sides.items():
            times[name].append(timed(work))
    medians = {name: np.median(t, axis=0) for name, t in times.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{task:18s} {name:24s} {wall:8.2f} ms  (CPU {cpu:.2f} ms)")
    if gl is not None:
        ours, theirs = medians.values()
        print(f"{task:18s} {'ratio':24s} {theirs[0] / ours[0]:8.1f} x   (CPU {theirs[1] / ours[1]:.1f} x)")
        gl.close()
    env.close()


if __name__ == "__main__":
    for name in sys.argv[1:] or TASKS:
        run(name, backend())
