"""From configuration to policy: the one place that knows heads and networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from data.construct import construct, lookup
from data.errors import ConfigError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.chunk_policy import ChunkPolicy
from policies.encoders.obs import ObsEncoder
from policies.encoders.reconstruction import Reconstruction
from policies.heads.consistency import Asked, ConsistencyHead
from policies.heads.ctm import TrajectoryHead
from policies.heads.diffusion import DiffusionHead
from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from policies.heads.flowpolicy import FlowPolicyHead
from policies.heads.head import Head
from policies.heads.meanflow import MeanFlowHead
from policies.heads.shortcut import ShortcutHead
from policies.networks.dit import DiT
from policies.networks.mlp import ResidualMLP
from policies.networks.transformer import Transformer
from policies.networks.unet1d import UNet1d
from policies.prefix import Prefix

HEADS: dict[str, type[Head]] = {
    "consistency": ConsistencyHead,
    "ctm": TrajectoryHead,
    "diffusion": DiffusionHead,
    "edm": EDMHead,
    "flow": FlowHead,
    "flowpolicy": FlowPolicyHead,
    "meanflow": MeanFlowHead,
    "shortcut": ShortcutHead,
}
# Options that a head's path and its reading of the network's output follow from; the others' are a flow's.
OF_THE_PATH = {
    "diffusion": ("n_train_steps", "beta_schedule", "prediction"),
    "edm": ("sigma_data", "sigma_min", "sigma_max", "rho"),
}
NETWORKS: dict[str, type[nn.Module]] = {
    "unet1d": UNet1d,
    "mlp": ResidualMLP,
    "transformer": Transformer,
    "dit": DiT,
}

# How each kind of observation is normalised; images not at all, their encoder scales colours, and depth is in metres.
# Contacts are rare and hard: by their range most readings would lie at zero.
NORMALISER_MODES = {
    "state": "minmax",
    "pointcloud": "minmax",
    "force": "meanstd",
    "goal": "minmax",
    "language": "identity",
}


def normaliser_modes(spec: TaskSpec, action: str = "minmax") -> dict[str, str]:
    """Normaliser mode of every key of ``spec``."""
    fields = spec.obs.items()
    return {"action": action, **{key: "identity" if f.is_image else NORMALISER_MODES[f.kind] for key, f in fields}}


def _named(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    section = dict(config[where])
    return section.pop("name"), section


def denoiser_config(policy: Mapping[str, Any]) -> dict[str, Any]:
    """``policy.denoiser`` of a consistency head that runs along the path of the head ``policy``."""
    name = policy["name"] if policy["name"] in OF_THE_PATH else "flow"
    return {"name": name, **{k: policy[k] for k in OF_THE_PATH.get(name, ()) if k in policy}}


def _denoiser(config: Mapping[str, Any]) -> Head:
    """A head without a network, as ConsistencyHead takes it."""
    args = dict(config)
    name = args.pop("name")
    if name == "diffusion":
        args.setdefault("clip_sample", False)  # where it clips, nothing is learned
    return construct(lookup(HEADS, name, "policy.denoiser"), args, "policy.denoiser", network=Asked())


def build_policy(config: Mapping[str, Any], spec: TaskSpec, normaliser: Normaliser) -> ChunkPolicy:
    """A ChunkPolicy.

    Args:
        config: n_obs_steps, horizon, n_action_steps, and the sections ``policy`` (head), ``network``, ``encoder``.
        spec: shapes; every dimension of the network follows from it.
        normaliser: fitted, or to be filled from a checkpoint.
    """
    encoder = ObsEncoder(spec.obs, config["encoder"])
    head_name, head_args = _named(config, "policy")
    net_name, net_args = _named(config, "network")
    if "time_scale" in head_args:
        net_args.setdefault("time_scale", float(head_args.pop("time_scale")))
    of_the_path = head_args.get("denoiser", head_args)
    if "n_train_steps" in of_the_path:  # the network then sees DDPM's integer k
        net_args.setdefault("time_scale", float(of_the_path["n_train_steps"]))
    if "denoiser" in head_args:
        head_args["denoiser"] = _denoiser(head_args["denoiser"])
    weight = head_args.pop("reconstruction", 0.0)
    cond_shape = encoder.token_shape(config["n_obs_steps"])
    prefix = _prefix(head_args.pop("prefix", 0), config, spec, cond_shape[1])
    if prefix is not None:
        cond_shape = (cond_shape[0] + prefix.n_tokens, cond_shape[1])
    head_class = lookup(HEADS, head_name, "policy")
    network = construct(
        lookup(NETWORKS, net_name, "network"),
        net_args,
        "network",
        action_dim=spec.action.shape[0],
        horizon=config["horizon"],
        cond_shape=cond_shape,
        n_times=head_class.n_times,
    )
    mask = encoder.token_mask(head_args.pop("cfg_keys", None), config["n_obs_steps"])
    if prefix is not None:  # guidance leaves it alone
        mask = torch.cat([mask, torch.zeros(prefix.n_tokens, mask.shape[1], dtype=torch.bool)])
    head = construct(head_class, head_args, "policy", network=network, cond_mask=mask)
    return ChunkPolicy(
        spec,
        normaliser,
        encoder,
        head,
        n_obs_steps=config["n_obs_steps"],
        horizon=config["horizon"],
        n_action_steps=config["n_action_steps"],
        reconstruction=Reconstruction(spec.obs, cond_shape, weight) if weight > 0 else None,
        prefix=prefix,
    )


def _prefix(longest: int, config: Mapping[str, Any], spec: TaskSpec, width: int) -> Prefix | None:
    """For chunks that go on from at most ``longest`` actions; 0: none."""
    if not 0 <= longest < config["horizon"]:
        raise ConfigError(f"policy.prefix={longest} must lie in 0..horizon - 1 = {config['horizon'] - 1}.")
    return Prefix(longest, spec.action.shape[0], width) if longest else None
