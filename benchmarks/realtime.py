"""Late chunks: success and jerk against the delay of inference, and success of warm starts against their cost.

    python benchmarks/realtime.py --checkpoint RUN [--episodes 100] [--delays 0 1 2 3 4] [--steps 1 2 3 5]

Every cell is one run of eval.py on the same seeds; what is there already is not run again. After every cell it prints
the table and writes it, with a plot, to OUT (RUN/realtime). Options of eval.py may follow after "--".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from chain import ensure_evaluation, errorbars, interval, percent, side_by_side
from records import read

LATE = ("async", "ensemble", "rtc", "prefix")
COLOURS = {
    "sync": "#444444",
    "async": "#d1495b",
    "ensemble": "#edae49",
    "rtc": "#00798c",
    "prefix": "#7768ae",
    "rti": "#30638e",
}
HEADER = """| execution | delay | NFE | success, % | 95 % interval | jerk | jump, new chunk | elsewhere | ms per chunk |
|---|---|---|---|---|---|---|---|---|"""

Cell = tuple[str, int, int]  # execution, delay, network evaluations (0: those of the checkpoint)


def cells(methods: Sequence[str], delays: Sequence[int], steps: Sequence[int]) -> list[Cell]:
    """The world that waits first, which the others are compared with."""
    late = [(name, delay, 0) for delay in delays for name in methods if delay or name != "async"]
    return [("sync", 0, 0), *late, *(("rti", 0, n) for n in steps)]


def folder(root: Path, cell: Cell) -> Path:
    name, delay, n = cell
    return root / (f"{name}-{n}steps" if name == "rti" else f"{name}-delay{delay}")


def evaluate(root: Path, cell: Cell, argv: Sequence[str], options: Mapping[str, Sequence[str]]) -> None:
    """One cell; ``options`` of eval.py by method."""
    name, delay, n = cell
    own = [*([f"execution.n_steps={n}"] if n else []), *options.get(name, [])]
    ensure_evaluation(folder(root, cell), [*argv, f"execution.name={name}", f"execution.delay={delay}", *own])


def row(root: Path, cell: Cell) -> str:
    name, delay, _ = cell
    result = read(folder(root, cell))
    if result is None:
        return f"| {name} | {delay} |" + " - |" * 7
    how = result["execution"]
    values = [percent(result["success_rate"]), interval(result["success_ci95"])]
    smooth = [f"{how[key]:.4f}" for key in ("jerk", "jump_at_switch", "jump_elsewhere")]
    latency = f"{result['chunk_latency_ms_p50']:.1f}"
    return "| " + " | ".join([name, str(delay), f"{how['nfe']:.2f}", *values, *smooth, latency]) + " |"


def plot(root: Path, methods: Sequence[str], delays: Sequence[int], steps: Sequence[int]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    success, jerk, warm = figure.subplots(1, 3)
    sync, lowest = read(root / "sync-delay0"), 1.0
    for name in methods:
        at = [("sync" if name == "async" and not d else name, d, 0) for d in delays]
        found = [(d, r) for (_, d, _), r in zip(at, (read(folder(root, c)) for c in at), strict=True) if r]
        lowest = min([lowest, *(r["success_ci95"][0] for _, r in found)])
        errorbars(success, found, COLOURS[name], name)
        jerk.plot([d for d, _ in found], [r["execution"]["jerk"] for _, r in found], "o-", color=COLOURS[name])
    found = [(r["execution"]["nfe"], r) for r in (read(folder(root, ("rti", 0, n))) for n in steps) if r]
    errorbars(warm, found, COLOURS["rti"], "warm start")
    if sync:
        for axes, value in ((success, sync["success_rate"]), (jerk, sync["execution"]["jerk"])):
            axes.axhline(value, color=COLOURS["sync"], ls=":", label="the world waits")
        errorbars(warm, [(sync["execution"]["nfe"], sync)], COLOURS["sync"], "full denoising")
    lowest = min([lowest, *(r["success_ci95"][0] for _, r in found)])
    success.set(xlabel="delay, control steps", ylabel="success (95 % interval)")
    jerk.set(xlabel="delay, control steps", ylabel="jerk, (action / step$^3$)$^2$", yscale="log")
    warm.set(xlabel="network evaluations per chunk", ylabel="success (95 % interval)")
    for axes in (success, warm):
        axes.set_ylim(max(-0.02, lowest - 0.1), 1.01)
    for axes in (success, jerk, warm):
        axes.grid(alpha=0.3)
    success.legend(loc="lower left")
    warm.legend(loc="lower right")
    figure.savefig(root / "realtime.png", dpi=110)


def check_same(root: Path, argv: Sequence[str]) -> None:
    """A folder holds the results of one question."""
    file = root / "asked.json"
    if file.exists() and json.loads(file.read_text()) != list(argv):
        raise SystemExit(f"{root} holds results of {json.loads(file.read_text())}; choose another --out.")
    file.write_text(json.dumps(list(argv)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--methods", nargs="+", choices=LATE, default=LATE[:3], help="prefix: of a policy trained for it"
    )
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--delays", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 5], help="network evaluations of warm starts")
    parser.add_argument("--action-steps", type=int, default=4, help="n_action_steps; at least the largest delay")
    parser.add_argument("--rti", nargs="*", default=[], help="options of warm starts, e.g. execution.start=0.2")
    parser.add_argument(
        "--rtc", nargs="*", default=[], help="options of real-time chunking, e.g. execution.line_search=false"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("overrides", nargs="*", help="after --: options of eval.py")
    args = parser.parse_args()
    root = (args.out or args.checkpoint / "realtime").resolve()
    root.mkdir(parents=True, exist_ok=True)
    argv = [f"checkpoint={args.checkpoint.resolve()}", f"n_episodes={args.episodes}", "n_envs=1"]
    argv += [f"n_action_steps={args.action_steps}", *args.overrides]
    check_same(root, [*argv, *args.rti, *args.rtc])
    options = {"rti": args.rti, "rtc": args.rtc}
    table = cells(args.methods, args.delays, args.steps)

    def report() -> None:
        lines = "\n".join([HEADER, *(row(root, c) for c in table)])
        (root / "table.md").write_text(lines + "\n")
        plot(root, args.methods, args.delays, args.steps)
        print("\n" + lines, flush=True)

    side_by_side([partial(evaluate, root, c, argv, options) for c in table], args.jobs, report)


if __name__ == "__main__":
    main()
