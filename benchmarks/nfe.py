"""Chunk latency against network evaluations: one policy, from one evaluation to a hundred, encoder included.

    python benchmarks/nfe.py [--size small] [--network unet1d] [--chunks 60] [--onnx]

Batch 1, float32, one thread, point cloud (512 points) and robot state in, actions in environment units out. All cases
are the same network with the same weights and take turns of three calls; medians of the first calls (the processor's
caches hold another case's weights, as they hold other things on a busy robot) and of the others (they hold this one's).
``--onnx`` adds onnxruntime, ``--compile`` ``compile=true``.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from configs.loader import load_config
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from policies.build import build_policy, normaliser_modes
from policies.compiled import compile_policy
from policies.policy import Policy

CASES = {  # name: overrides of the head
    "flow, 1": ["policy=flow", "policy.n_inference_steps=1"],
    "meanflow, 1": ["policy=meanflow"],
    "flow, 10": ["policy=flow", "policy.n_inference_steps=10"],
    "DDIM, 10": ["policy=diffusion", "policy.n_inference_steps=10"],
    "DDPM, 100": ["policy=diffusion", "policy.sampler=ddpm", "policy.n_inference_steps=100"],
}


def task() -> TaskSpec:
    """A table top in sight of one arm."""
    fields = {
        "pointcloud": FieldSpec((512, 3), "float32", "pointcloud"),
        "agent_pos": FieldSpec((9,), "float32", "state"),
    }
    return TaskSpec("bench", fields, FieldSpec((4,), "float32", "action"))


def make(overrides: list[str]) -> Policy:
    torch.manual_seed(0)
    config, spec = load_config("train", overrides), task()
    shapes = {"action": 4, **{k: f.shape[-1] for k, f in spec.obs.items()}}
    statistics = {k: {"min": -torch.ones(d), "max": torch.ones(d)} for k, d in shapes.items()}
    statistics = {
        k: {**s, "mean": torch.zeros_like(s["min"]), "std": torch.ones_like(s["min"])} for k, s in statistics.items()
    }
    return build_policy(config, spec, Normaliser(normaliser_modes(spec), statistics)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="unet1d")
    parser.add_argument("--size", default="small")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--onnx", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    common = [f"network={args.network}", f"network.size={args.size}"]
    obs = {"pointcloud": torch.rand(1, 2, 512, 3), "agent_pos": torch.rand(1, 2, 9)}
    calls = {}
    for name, overrides in CASES.items():
        policy = make([*common, *overrides])
        noise = policy.draw_noise(1)
        calls[name] = lambda policy=policy, noise=noise: policy.act(obs, noise=noise)
        if args.compile and not name.endswith("100"):
            compiled = make([*common, *overrides])
            compile_policy(compiled)
            calls[f"{name}, compiled"] = lambda policy=compiled, noise=noise: policy.act(obs, noise=noise)
        if args.onnx and not name.endswith("100"):
            calls[f"{name}, onnxruntime"] = onnx_call(policy, obs, noise)
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(args.chunks):
        for name, call in calls.items():
            turn = []
            for _ in range(3):
                start = time.perf_counter()
                call()
                turn.append(1e3 * (time.perf_counter() - start))
            times[name].append(turn)
    first = {name: float(np.median([turn[0] for turn in t])) for name, t in times.items()}
    others = {name: float(np.median([turn[1:] for turn in t])) for name, t in times.items()}
    for name, ms in first.items():
        rate = others["DDPM, 100"] / others[name]
        print(f"{name:24s} {ms:7.2f} ms at first, {others[name]:7.2f} ms then, {rate:6.1f} x DDPM's rate")
    rounded = {k: [round(v, 3), round(others[k], 3)] for k, v in first.items()}
    print(json.dumps({"network": args.network, "size": args.size, **rounded}))


def onnx_call(policy: Policy, obs: dict[str, torch.Tensor], noise: torch.Tensor):
    """Of the exported policy."""
    import onnxruntime

    from policies.export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(policy, Path(folder) / "policy.onnx", obs, trials=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(Path(folder) / "policy.onnx"), options)
    inputs = {**{k: v.numpy() for k, v in obs.items()}, "noise": noise.numpy()}
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    main()
