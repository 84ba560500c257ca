"""Fine-tuners side by side: the same bases, the same seeds, one line for each method, task and seed.

    python benchmarks/finetune_table.py [--methods residual dsrl] [--tasks push-v3 ...] [--seeds 0 1 2] [--jobs 2]

Every base is ``algo=bc`` on 20 demonstrations, stopped early so that there is something to improve; that of ``dppo`` is
a diffusion policy. Resumes where it
was stopped; with --report it only prints what is there. Success is that of the final policy over 200 episodes (of the
base over 100); ``dip`` the base's success minus the worst mean of three evaluations in a row, in points; environment
steps to 90 and 95 % are those of the first evaluation (50 episodes) that reached them.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from chain import ROOT, check_root, ensure_run, interval, percent, side_by_side
from records import read

# Of each class, easy to very hard, on which such a base starts at 30 to 80 %
TASKS = [
    "lever-pull-v3", "peg-unplug-side-v3", "push-wall-v3", "assembly-v3", "pick-out-of-hole-v3", "pick-place-v3",
    "push-v3", "push-back-v3", "disassemble-v3", "pick-place-wall-v3",
]  # fmt: skip
METHODS = ["residual", "dsrl"]  # and residual_ppo, dppo
BASE = [
    "algo.train_steps=300", "policy.n_inference_steps=4", "data.n_demos=20", "eval.n_videos=0", "eval.n_envs=1",
]  # fmt: skip
EVAL = ["eval.n_episodes=200", "eval.every=5000", "eval.every_n_episodes=50", "eval.n_videos=0", "eval.n_envs=1"]
ON_POLICY = ["eval.every=50000", "log.every=5000"]
FOR_METHOD = {"residual_ppo": [*ON_POLICY, "algo.env_steps=600000"], "dppo": [*ON_POLICY, "algo.env_steps=400000"]}
DIFFUSION = ["policy=diffusion", "policy.n_inference_steps=5", "algo.train_steps=250"]
COLUMNS = [
    "method",
    "task",
    "seed",
    "base",
    "final",
    "95%_interval",
    "steps_to_90%",
    "to_95%",
    "dip",
    "steps",
    "minutes",
]
HEADER = f"| {' | '.join(c.replace('_', ' ') for c in COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def folders(root: Path, task: str, seed: int, obs: str, method: str) -> tuple[Path, Path]:
    """Run folders of the base and of the fine-tuning."""
    base = root / f"{task}-{obs}{'-diffusion' if method == 'dppo' else ''}-s{seed}"
    return base, root / f"{task}-{obs}-s{seed}-{method}"


def job(root: Path, task: str, seed: int, obs: str, method: str, overrides: list[str]) -> None:
    base, tuned = folders(root, task, seed, obs, method)
    if read(tuned) is not None:
        return
    of_base = [*BASE, *DIFFUSION] if method == "dppo" else BASE
    ensure_run(
        base, [f"task.name={task}", f"obs={obs}", f"seed={seed}", "eval.n_episodes=100", *of_base], checkpoint=True
    )
    overrides = [*EVAL, *FOR_METHOD.get(method, []), *overrides]
    ensure_run(tuned, [f"algo={method}", f"base={base}", f"seed={seed}", *overrides])


def row(root: Path, task: str, seed: int, obs: str, method: str) -> str:
    base, tuned = (read(folder) for folder in folders(root, task, seed, obs, method))
    cells = [method, task, str(seed), percent(base and base["success_rate"])]
    if tuned is None:
        return "| " + " | ".join([*cells, *["-"] * 7]) + " |"
    dip = "-" if tuned["dip"] is None else f"{100 * tuned['dip']:.0f}"
    cells += [percent(tuned["success_rate"]), interval(tuned["success_ci95"])]
    cells += [str(tuned["env_steps_to_90"] or "-"), str(tuned["env_steps_to_95"] or "-"), dip]
    return "| " + " | ".join([*cells, str(tuned["step"]), f"{tuned['train_seconds'] / 60:.1f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--obs", default="state")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "finetune")
    parser.add_argument("--report", action="store_true", help="print what is there and run nothing")
    parser.add_argument("overrides", nargs="*", help="after --: options of train.py for the fine-tuning runs")
    args = parser.parse_args()
    check_root(parser, args)
    cases = [(t, s, args.obs, m) for s in args.seeds for t in args.tasks for m in args.methods]

    def report() -> None:
        print("\n" + HEADER, *(row(args.root, *case) for case in cases), sep="\n", flush=True)

    if args.report:
        report()
        return
    # A base is trained once, so the methods of one task follow each other.
    by_task = {(t, s): [c for c in cases if c[:2] == (t, s)] for t, s, *_ in cases}

    def chain(group: list[tuple[str, int, str, str]]) -> None:
        for case in group:
            job(args.root, *case, args.overrides)

    side_by_side([partial(chain, group) for group in by_task.values()], args.jobs, report)


if __name__ == "__main__":
    main()
