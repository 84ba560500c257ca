"""Results that outlive the run folders they come from: one line of JSON each, in benchmarks/results, committed.

    python benchmarks/records.py runs/fifty runs/heads ...

adds what has ended in these folders to benchmarks/results/fifty.jsonl, heads.jsonl, ... The benchmarks whose tables
take days read them: what is recorded there under a run's name is not run again. Give another --root to run it all anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from configs.loader import load_config

RESULTS = Path(__file__).parent / "results"
LEFT_OUT = ("seeds", "checkpoint")  # of eval.json
GROUPS = ("algo", "policy", "obs", "network")  # that a command line chooses by name
PLACES = ("run_dir", "data.root", "base_config", "base_demo_seeds", "device", "precision", "threads", "resume")


def read(folder: Path) -> dict[str, Any] | None:
    """eval.json of the run in ``folder``, with what ``measured`` adds, or what was recorded of it; None: neither."""
    return measured(folder) or read_all(RESULTS / f"{folder.parent.name}.jsonl").get(folder.name)


def read_all(file: Path) -> dict[str, dict[str, Any]]:
    """The records of one file, by the run's name."""
    if not file.exists():
        return {}
    return {r["run"]: r for r in map(json.loads, file.read_text().splitlines())}


def measured(folder: Path) -> dict[str, Any] | None:
    """eval.json of a run that has ended; of a training also "evaluations" during it, [step, rate], and "train_minutes".

    Minutes are those of algo=bc and distill without their evaluations; fine-tuning has its own train_seconds.
    """
    if not (folder / "eval.json").exists():
        return None
    out = json.loads((folder / "eval.json").read_text())
    if (folder / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rates = [[r["step"], r["success_rate"]] for r in lines if "success_rate" in r]
        out["evaluations"] = rates[:-1]  # the last is the final one
        paced = [r for r in lines if "samples_per_s" in r]
        if paced:
            batch_size = yaml.safe_load((folder / "config.yaml").read_text())["algo"]["batch_size"]
            out["train_minutes"] = round(paced[-1]["step"] * batch_size / paced[-1]["samples_per_s"] / 60, 2)
    return out


def record(folder: Path) -> dict[str, Any] | None:
    """What is kept of a run that has ended: ``measured``, the settings that are not the defaults, and the commit."""
    found = measured(folder)
    if found is None:
        return None
    out = {"run": folder.name, **{k: v for k, v in found.items() if k not in LEFT_OUT}}
    if (folder / "config.yaml").exists():
        out["settings"] = settings(yaml.safe_load((folder / "config.yaml").read_text()))
    return {**out, "commit": commit()}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, and the names of what was chosen."""
    chosen = [f"{group}={config[group]['name']}" for group in GROUPS]
    defaults = flat(load_config("train", chosen))
    own = {k: v for k, v in flat(config).items() if not k.startswith(PLACES)}
    if own.get("base"):
        own["base"] = Path(own["base"]).name
    return {k: v for k, v in own.items() if k.endswith(".name") or defaults.get(k, v) != v}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"algo": {"lr": 1}} -> {"algo.lr": 1}."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def commit() -> str:
    """Of the checkout that records."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="folders of runs")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for root in args.roots:
        file = RESULTS / f"{root.resolve().name}.jsonl"
        records = read_all(file)
        for folder in sorted(root.iterdir()):
            new = record(folder) if folder.is_dir() else None
            if new is not None and {**records.get(folder.name, {}), "commit": new["commit"]} != new:
                records[folder.name] = new
        file.write_text("".join(json.dumps(records[name]) + "\n" for name in sorted(records)))
        print(f"{file}: {len(records)} runs")


if __name__ == "__main__":
    main()
