"""How a policy's answers are executed when they come late: success and smoothness over injected delays, per mode.

    python benchmarks/robot_delays.py CHECKPOINT [--delays 0 0.1 0.2 0.3] [--trials 50] [--out runs/robot-delays]

The checkpoint is a policy for ``task=robot``, or of recordings with a cube. Every cell runs the same seeds, in
simulated time (``real_robot/rehearsal.py``): an answer takes exactly its delay, whatever machine computes it. Takes up
where it stopped. Jerk is the root mean square of what the arm's joints were sent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from configs.loader import load_config
from envs.evaluate import wilson_interval
from real_robot.agent.process import build_client
from real_robot.parts import policy_of
from real_robot.rehearsal import rehearse

MODES = ("sync", "replace", "ensemble", "rtc", "rti", "prefix")
SEED = 20_000


def cell(checkpoint: Path, mode: str, delay: float, trials: int) -> dict[str, Any]:
    config = load_config("deploy", [f"checkpoint={checkpoint}", f"mode={mode}", f"inject={delay}"])
    found = rehearse(config, build_client(policy_of(config), mode), [SEED + i for i in range(trials)])
    seconds = sorted(s for _, success, s in found.trials if success)
    wins = len(seconds)
    return {
        "mode": mode,
        "delay": delay,
        "trials": trials,
        "success_rate": found.success_rate,
        "success_ci95": wilson_interval(wins, trials),
        "jerk_rms": found.jerk,
        "seconds": seconds[wins // 2] if wins else None,
    }


def table(cells: dict[str, dict[str, Any]], delays: list[float]) -> str:
    head = [f"{1000 * d:.0f} ms" for d in delays]
    lines = [f"| mode | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for mode in [m for m in MODES if any(cells.get(f"{m} {d}") for d in delays)]:
        row = [cells.get(f"{mode} {d}") for d in delays]
        texts = [
            "-" if c is None
            else f"{100 * c['success_rate']:.0f} ({100 * c['success_ci95'][0]:.0f}-{100 * c['success_ci95'][1]:.0f}) "
            f"/ {c['jerk_rms']:.0f} / {c['seconds'] or float('nan'):.1f}"
            for c in row
        ]  # fmt: skip
        lines.append(f"| {mode} | {' | '.join(texts)} |")
    return "\n".join(lines)


def plot(path: Path, cells: dict[str, dict[str, Any]], delays: list[float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for mode in [m for m in MODES if any(cells.get(f"{m} {d}") for d in delays)]:
        row = [(d, cells[f"{mode} {d}"]) for d in delays if f"{mode} {d}" in cells]
        x = [1000 * d for d, _ in row]
        axes[0].plot(x, [100 * c["success_rate"] for _, c in row], marker="o", label=mode)
        axes[1].plot(x, [c["jerk_rms"] for _, c in row], marker="o")
    axes[0].set(xlabel="delay of an answer, ms", ylabel="success, %", ylim=(-3, 103))
    axes[1].set(xlabel="delay of an answer, ms", ylabel="jerk of the joints, rad/s³ (rms)", ylim=(0, None))
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument(
        "--modes", nargs="+", default=list(MODES[:-1]), choices=MODES, help="prefix: of a policy trained so"
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/robot-delays"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "cells.json"
    cells: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for delay in given.delays:
        for mode in given.modes:
            key = f"{mode} {delay}"
            if cells.get(key, {}).get("trials") != given.trials:
                cells[key] = cell(given.checkpoint, mode, delay, given.trials)
                path.write_text(json.dumps(cells, indent=1) + "\n")
                print(key, cells[key], flush=True)
    print("success % (95 % interval) / jerk rad/s³ / median s of the successes\n")
    print(table(cells, given.delays))
    plot(given.out / "delays.png", cells, given.delays)


if __name__ == "__main__":
    main()
