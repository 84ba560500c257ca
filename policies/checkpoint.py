"""A checkpoint is a folder that needs nothing else: config.json and model.safetensors.

config.json holds the schema version, the policy's resolved configuration, the task's contract (shapes, rates, simulator
versions) and what trained it; model.safetensors the EMA weights and the normaliser.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.errors import ContractError, DataError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.build import build_policy, normaliser_modes
from policies.chunk_policy import ChunkPolicy
from policies.policy import Policy

SCHEMA_VERSION = 1


def save_policy(
    path: Path | str, policy: Policy, config: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes the folder ``path``, replacing an older one; a kill in between leaves one of the two whole.

    Args:
        path: folder to write.
        policy: its present weights are saved.
        config: what ``build_policy`` needs.
        meta: free-form facts (data set, training step, package versions) kept beside it.
    """
    path = Path(path)
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "class": type(policy).__name__,
        "config": config,
        "task": policy.spec.to_dict(),
        "meta": meta or {},
    }
    (new / "config.json").write_text(json.dumps(document, indent=2))
    save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, new / "model.safetensors")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint folder that ``path`` (a run folder or the checkpoint itself) means."""
    path = Path(path)
    candidates = [path, path / "checkpoint", path / "checkpoint.old"]
    for folder in candidates:
        if (folder / "config.json").exists():
            return folder
    raise DataError(f"No checkpoint at {path}: expected {path}/config.json or {path}/checkpoint/config.json.")


def read_config(path: Path | str) -> dict[str, Any]:
    """config.json of a checkpoint, checked."""
    file = find_checkpoint(path) / "config.json"
    try:
        document = json.loads(file.read_text())
    except json.JSONDecodeError as e:
        raise DataError(f"{file} is not valid JSON ({e}); the checkpoint is corrupt.") from e
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{file} has schema_version {version}; this version of Deft reads {SCHEMA_VERSION}.")
    return document


def load_policy(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    overrides: Mapping[str, Any] | None = None,
    n_action_steps: int | None = None,
) -> ChunkPolicy:
    """A policy ready to act.

    Args:
        path: a checkpoint folder, or a run folder that holds one.
        device: where to put it.
        overrides: options of the head that inference may change, e.g. {"n_inference_steps": 1}.
        n_action_steps: executes more or fewer actions of each chunk than in training.
    """
    folder = find_checkpoint(path)
    document = read_config(folder)
    config = document["config"]
    config["policy"].update(overrides or {})
    if n_action_steps is not None:
        config["n_action_steps"] = n_action_steps
    spec = TaskSpec.from_dict(document["task"])
    try:
        weights = load_file(folder / "model.safetensors", device=str(device))
    except (OSError, SafetensorError) as e:
        raise DataError(f"{folder / 'model.safetensors'} cannot be read ({e}); the checkpoint is corrupt.") from e
    normaliser = Normaliser.from_state_dict(weights, normaliser_modes(spec), prefix="normaliser.")
    policy = build_policy(config, spec, normaliser).to(device)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as e:
        raise DataError(f"The weights in {folder} do not fit its config.json: {str(e).splitlines()[1].strip()}") from e
    return policy.eval()


def check_contract(policy: Policy, env: TaskSpec, where: str = "The environment") -> None:
    """Refuses an environment (or robot) whose observations or actions are not the policy's, naming every difference."""
    differences = policy.spec.differences(env)
    if differences:
        raise ContractError(f"{where} does not fit the policy trained on {policy.spec.name}: {'; '.join(differences)}.")
