"""A policy as one ONNX file: observations in environment units and noise in, actions in environment units out.

Normaliser, encoder, all denoising steps and the clipping are inside: a robot's computer needs onnxruntime alone.
Inputs: every observation of the task, (1, To, *shape), and ``noise`` (1, *noise_shape), standard normal. Output:
``action`` (1, Ta, Da).
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import ConfigError, ContractError
from policies.chunk_policy import ChunkPolicy
from policies.policy import Obs, Policy

TOLERANCE = 1e-4  # of the normalised action range


class _Acts(nn.Module):
    """``Policy.act`` with inputs by position."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, self.keys = policy, list(policy.spec.obs)

    def forward(self, *inputs: Tensor) -> Tensor:
        *obs, noise = inputs
        return self.policy.act(dict(zip(self.keys, obs, strict=True)), noise=noise)


@dataclass
class Exported:
    """What ``export_onnx`` found.

    Attributes:
        path: of the file.
        max_difference: the largest between torch's and onnxruntime's actions, over the trials.
        torch_ms, onnx_ms: medians of one call each, taken in turns, one thread each.
    """

    path: str
    max_difference: float
    torch_ms: float
    onnx_ms: float


def onnx_modules() -> Any:
    """onnxruntime, where all that an export needs is installed.

    Raises:
        ConfigError: telling how to install it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ConfigError(f"export=onnx needs {e.name}: pip install 'deft[onnx]'.") from e
    return onnxruntime


def export_onnx(policy: Policy, path: Path | str, obs: Obs, *, trials: int = 20) -> Exported:
    """Writes the file, asks both for the same actions, and times them.

    Args:
        policy: a ChunkPolicy, in eval mode, on the CPU.
        path: the file to write; facts about inputs and output go into its metadata.
        obs: real observations, (1, To, *shape) each; the trials disturb them.
        trials: comparisons.

    Raises:
        ConfigError: the policy is of another kind.
        ContractError: the file answers differently.
    """
    onnxruntime = onnx_modules()
    if not isinstance(policy, ChunkPolicy):
        raise ConfigError(f"export=onnx writes imitation policies; this is a {type(policy).__name__}.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [*policy.spec.obs, "noise"]
    generator = torch.Generator().manual_seed(0)
    inputs = (*(obs[key] for key in policy.spec.obs), policy.draw_noise(1, generator))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Acts(policy).eval(), inputs, input_names=names, output_names=["action"], dynamo=True, verbose=False
        )
    assert program is not None
    facts = {"task": policy.spec.to_dict(), "n_obs_steps": policy.n_obs_steps}
    program.model.metadata_props["deft"] = json.dumps(facts)
    program.save(str(path), external_data=False)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences, times = [], ([], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(trials):
            changed = {k: _disturbed(obs[k], generator) for k in policy.spec.obs}
            noise = policy.draw_noise(1, generator)
            start = perf_counter()
            ours = policy.act(changed, noise=noise)
            middle = perf_counter()
            (theirs,) = session.run(None, {k: np.asarray(v) for k, v in [*changed.items(), ("noise", noise)]})
            times[0].append(middle - start)
            times[1].append(perf_counter() - middle)
            differences.append(float((ours - torch.from_numpy(theirs)).abs().max()))
    finally:
        torch.set_num_threads(threads)
    found = Exported(str(path), max(differences), *(1e3 * median(t) for t in times))
    span = float(torch.as_tensor(policy.spec.action_high - policy.spec.action_low).max())
    if not found.max_difference <= TOLERANCE * span / 2:
        raise ContractError(f"{path} answers differently: by up to {found.max_difference:.2g}.")
    return found


def _disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Near x; images get new pixels."""
    if x.dtype == torch.uint8:
        return torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
    return x + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
