"""Success of the default point-cloud policy on Meta-World tasks: 10 demonstrations, final checkpoint, fixed seeds.

    python benchmarks/metaworld_pointcloud.py [--tasks hammer-v3 push-v3 ...] [-- overrides of train.py]

Trains and evaluates one task after the other with train.py, resumes where it was stopped, and prints a table of what
is there.
DP3's published figures (Ze et al. 2024, table XVIII: v2 tasks, mean of the five best evaluations) stand beside ours (v3
tasks, one evaluation of the final checkpoint) for orientation: the protocols differ, and theirs is the more favourable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DP3 = {
    "door-open-v3": ("easy", 99),
    "drawer-open-v3": ("easy", 100),
    "peg-unplug-side-v3": ("easy", 75),
    "handle-pull-v3": ("easy", 53),
    "lever-pull-v3": ("easy", 79),
    "dial-turn-v3": ("easy", 66),
    "hammer-v3": ("medium", 76),
    "coffee-pull-v3": ("medium", 87),
    "push-wall-v3": ("medium", 49),
    "sweep-v3": ("medium", 96),
    "box-close-v3": ("medium", 42),
    "assembly-v3": ("hard", 99),
    "push-v3": ("hard", 51),
    "pick-place-v3": ("hard", 12),
    "hand-insert-v3": ("hard", 14),
    "disassemble-v3": ("very hard", 69),
    "stick-push-v3": ("very hard", 97),
    "stick-pull-v3": ("very hard", 27),
    "pick-place-wall-v3": ("very hard", 35),
}
DEFAULT_TASKS = ["drawer-open-v3", "hammer-v3", "push-wall-v3", "assembly-v3", "stick-push-v3"]


def train(task: str, folder: Path, overrides: list[str]) -> None:
    """One run of train.py; nothing where it has already ended."""
    if (folder / "eval.json").exists():
        return
    if (folder / "config.yaml").exists():
        args = [f"resume={folder}"]
    else:
        args = [f"task.name={task}", "obs=pointcloud", f"run_dir={folder}", "eval.n_episodes=100", *overrides]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *args], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def row(task: str, folder: Path) -> str:
    """One line of the table, read from the run folder."""
    level, dp3 = DP3.get(task, ("?", "?"))
    if not (folder / "eval.json").exists():
        return f"| {task} | {level} | {dp3} | - | - | - | - |"
    result = json.loads((folder / "eval.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [r for r in records if "loss" in r]
    minutes = (losses[-1]["time"] - losses[0]["time"]) / 60
    low, high = (100 * bound for bound in result["success_ci95"])
    return (
        f"| {task} | {level} | {dp3} | {100 * result['success_rate']:.0f} | {low:.0f}-{high:.0f} "
        f"| {result['n_episodes']} | {minutes:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEFAULT_TASKS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench-pointcloud")
    parser.add_argument("overrides", nargs="*", help="after --: passed to train.py")
    args = parser.parse_args()
    for task in args.tasks:
        train(task, args.runs / task, args.overrides)
    print("| task | level | DP3, published | ours, success % | 95 % interval | episodes | training, min |")
    print("|---|---|---|---|---|---|---|")
    for task in args.tasks:
        print(row(task, args.runs / task))


if __name__ == "__main__":
    main()
