"""A checkpoint is a folder that needs nothing else: config.json and model.safetensors.

LeRobot's folders and Diffusion Policy's .ckpt files are read in their place (policies.foreign).

config.json holds the schema version, the policy's resolved configuration, the task's contract (shapes, rates, simulator
versions) and what trained it; model.safetensors the EMA weights and the normaliser. A tensor with several names is kept
once; config.json's "shared" has the other names.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import ConfigError, ContractError, DataError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.black_box import BlackBox
from policies.build import build_policy, normaliser_modes
from policies.chunk_policy import ChunkPolicy
from policies.foreign.diffusion_policy import read_diffusion_policy
from policies.foreign.lerobot import is_lerobot, read_lerobot
from policies.foreign.tensors import read_safetensors
from policies.policy import Policy

SCHEMA_VERSION = 1

# Policies around another policy live with the algorithm that trains them; a checkpoint names them by these words.
WRAPPERS = {
    "ResidualPolicy": "algos.corrected",
    "SteeredPolicy": "algos.steered",
    "ResidualGaussianPolicy": "algos.residual_ppo",
    "FineTunedDiffusion": "algos.dppo",
    "GaussianPolicy": "algos.sac",  # around nothing
}


class Wrapper(Protocol):
    """``cls(base, **options)`` rebuilds it around its base; without one, ``cls(spec, normaliser, **options)``."""

    options: dict[str, Any]


def wrapped_config(policy: Policy, base_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration of a wrapper around a policy whose own configuration is ``base_config`` (None: no base)."""
    name = type(policy).__name__
    if name not in WRAPPERS:
        raise ContractError(f"{name} is not among the wrappers a checkpoint can hold: {sorted(WRAPPERS)}.")
    wrapper = cast(Wrapper, policy)
    return {"wrapper": name, "options": wrapper.options, "base": base_config}


def _rebuild(config: Mapping[str, Any], spec: TaskSpec, weights: Mapping[str, Tensor], prefix: str = "") -> Policy:
    """The policy of ``config``, weights not loaded yet; ``prefix`` of its entries in ``weights``."""
    if "black_box" in config:
        modes = normaliser_modes(spec, action="identity")
        normaliser = Normaliser.from_state_dict(dict(weights), modes, prefix=f"{prefix}normaliser.")
        return BlackBox(spec, normaliser, **config["black_box"])
    if "wrapper" in config:
        name = config["wrapper"]
        if name not in WRAPPERS:
            raise DataError(f"The checkpoint holds a {name}; this version knows {sorted(WRAPPERS)}.")
        cls = getattr(importlib.import_module(WRAPPERS[name]), name)
        if config["base"] is not None:
            return cls(_rebuild(config["base"], spec, weights, f"{prefix}base."), **config["options"])
        modes = normaliser_modes(spec, action="identity")
        normaliser = Normaliser.from_state_dict(dict(weights), modes, prefix=f"{prefix}normaliser.")
        return cls(spec, normaliser, **config["options"])
    modes = {**normaliser_modes(spec), **config.get("normaliser", {})}
    normaliser = Normaliser.from_state_dict(dict(weights), modes, prefix=f"{prefix}normaliser.")
    return build_policy(config, spec, normaliser)


def _innermost(config: dict[str, Any]) -> dict[str, Any]:
    return _innermost(config["base"]) if config.get("base") is not None else config


def save_policy(
    path: Path | str, policy: Policy, config: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes the folder ``path``, replacing an older one; a kill in between leaves one of the two whole.

    Args:
        path: folder to write.
        policy: its present weights are saved.
        config: what ``build_policy`` needs; the encoder's part is completed, so that no file it names is needed again.
        meta: free-form facts (data set, training step, package versions) kept beside it.
    """
    path = Path(path)
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if isinstance(policy, ChunkPolicy):
        config = {**config, "encoder": policy.encoder.options}
    weights, shared = _once(policy.state_dict())
    document = {
        "schema_version": SCHEMA_VERSION,
        "class": type(policy).__name__,
        "config": config,
        "task": policy.spec.to_dict(),
        "meta": meta or {},
        "shared": shared,
    }
    (new / "config.json").write_text(json.dumps(document, indent=2))
    save_file({k: v.contiguous() for k, v in weights.items()}, new / "model.safetensors")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under their first names, and {other name: first name}."""
    first: dict[Any, str] = {}
    shared = {}
    for name, x in state.items():
        kept = first.setdefault((x.data_ptr(), x.shape, x.stride(), x.dtype) if x.numel() else name, name)
        if kept != name:
            shared[name] = kept
    return {name: x for name, x in state.items() if name not in shared}, shared


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint that ``path`` (a run folder, ours or another project's, or the checkpoint itself) means."""
    path = Path(path)
    for file in (path, path / "checkpoints" / "latest.ckpt"):
        if file.suffix == ".ckpt" and file.is_file():
            return file
    theirs = [path / "pretrained_model", path / "checkpoints" / "last" / "pretrained_model"]
    for folder in [path, path / "checkpoint", path / "checkpoint.old", *theirs]:
        if (folder / "config.json").exists():
            return folder
    raise DataError(f"No checkpoint at {path}: expected {path}/config.json or {path}/checkpoint/config.json.")


def read_config(path: Path | str, features: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of a checkpoint, checked; of somebody else's what it would be. ``features``: see ``load_policy``."""
    return _read(find_checkpoint(path), features)[0]


def _read(folder: Path, features: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """config.json, and the weights where they are no file of ours."""
    if folder.suffix == ".ckpt":
        return read_diffusion_policy(folder, features)
    file = folder / "config.json"
    try:
        document = json.loads(file.read_text())
    except ValueError as e:
        raise DataError(f"{file} is not valid JSON ({e}); the checkpoint is corrupt.") from e
    if not isinstance(document, dict):
        raise DataError(f"{file} holds no configuration; the checkpoint is corrupt.")
    if is_lerobot(document):
        return read_lerobot(folder, features)
    if features is not None:
        raise ConfigError(f"features= gives names to what other projects' policies observe; {folder} has its own.")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{file} has schema_version {version}; this version of Deft reads {SCHEMA_VERSION}.")
    return document, None


def load_policy(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    overrides: Mapping[str, Any] | None = None,
    n_action_steps: int | None = None,
    black_box: str | None = None,
    features: Mapping[str, Any] | None = None,
) -> Policy:
    """A policy ready to act.

    Args:
        path: a checkpoint folder, or a run folder that holds one; or LeRobot's; or a .ckpt of Diffusion Policy's.
        device: where to put it.
        overrides: options of the head that inference may change, e.g. {"n_inference_steps": 1}.
        n_action_steps: executes more or fewer actions of each chunk than in training.
        black_box: "module:function" that the checkpoint's base may be; code that only a checkpoint names is not run.
        features: our names for what somebody else's policy observes, {feature: key}; see ``read_lerobot``.
    """
    folder = find_checkpoint(path)
    document, weights = _read(folder, features)
    config = document["config"]
    inner = _innermost(config)  # what executes and samples the chunks, however it is wrapped
    if "black_box" in inner:
        source = inner["black_box"]["source"]
        if source != black_box:
            raise ConfigError(f"The base of {folder} is code of yours: allow it to run with black_box={source}.")
        if overrides or n_action_steps is not None:
            raise ConfigError(f"{source} is a black box: leave out policy.* and n_action_steps.")
    if inner.get("wrapper") and (overrides or n_action_steps is not None):
        raise ConfigError(f"A {inner['wrapper']} has no inference options; leave out policy.* and n_action_steps.")
    if overrides:
        inner["policy"].update(overrides)
    if n_action_steps is not None:
        inner["n_action_steps"] = n_action_steps
    spec = TaskSpec.from_dict(document["task"])
    weights = read_safetensors(folder / "model.safetensors") if weights is None else weights
    weights |= {name: weights[kept] for name, kept in document.get("shared", {}).items()}
    policy = _rebuild(config, spec, weights).to(device)
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
