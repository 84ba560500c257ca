"""Weights of Diffusion Policy's U-Net between its own layout, which LeRobot took over, and ours.

Theirs has Conv1d weights (C_out, C_in, K) where ours are (K, C_in, C_out), and one FiLM map for each residual block,
where ours is one matrix for all of them, split into its time and its observation part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policies.foreign.tensors import Tensors
from policies.networks.unet1d import UNet1d

Kind = Literal["same", "conv", "transposed", "pointwise"]


@dataclass(frozen=True)
class Layout:
    """Where the two projects' names differ.

    Attributes:
        prefix: of all names.
        convs: the two convolution blocks of a residual block.
        sampler: what a down- or upsampling convolution is called within its module.
    """

    prefix: str
    convs: tuple[str, str]
    sampler: str


LEROBOT = Layout("diffusion.unet.", ("conv1", "conv2"), "")
DIFFUSION_POLICY = Layout("model.", ("blocks.0", "blocks.1"), ".conv")


def _to_theirs(x: Tensor, kind: Kind) -> Tensor:
    if kind == "conv":
        return x.permute(2, 1, 0)
    if kind == "transposed":
        return x.permute(1, 2, 0)
    return x.unsqueeze(-1) if kind == "pointwise" else x


def _to_ours(x: Tensor, kind: Kind) -> Tensor:
    if kind == "conv":
        return x.permute(2, 1, 0)
    if kind == "transposed":
        return x.permute(2, 0, 1)
    return x.squeeze(-1) if kind == "pointwise" else x


def _blocks(network: UNet1d) -> list[tuple[str, str]]:
    """(our name, their name) of every residual block, in the order of FiLM."""
    levels = [(i, j) for i in range(len(network.down)) for j in (0, 1)]
    ups = [(i, j) for i in range(len(network.up)) for j in (0, 1)]
    return [
        *((f"down.{i}.{j}", f"down_modules.{i}.{j}") for i, j in levels),
        *((f"mid.{j}", f"mid_modules.{j}") for j in (0, 1)),
        *((f"up.{i}.{j}", f"up_modules.{i}.{j}") for i, j in ups),
    ]


def _pairs(network: UNet1d, layout: Layout) -> Iterator[tuple[str, str, Kind]]:
    """(our name, their name without prefix, how the weight differs) of every layer but FiLM's."""
    for ours, theirs in (("time.mlp.0", "diffusion_step_encoder.1"), ("time.mlp.2", "diffusion_step_encoder.3")):
        yield ours, theirs, "same"
    have = {name.rsplit(".", 1)[0] for name in network.state_dict()}
    for ours, theirs in _blocks(network):
        for mine, conv in zip(("block1", "block2"), layout.convs, strict=True):
            yield f"{ours}.{mine}.conv", f"{theirs}.{conv}.block.0", "conv"
            yield f"{ours}.{mine}.norm", f"{theirs}.{conv}.block.1", "same"
        if f"{ours}.skip" in have:
            yield f"{ours}.skip", f"{theirs}.residual_conv", "pointwise"
    for i in range(len(network.down) - 1):
        yield f"down.{i}.2", f"down_modules.{i}.2{layout.sampler}", "conv"
    for i in range(len(network.up)):
        yield f"up.{i}.2", f"up_modules.{i}.2{layout.sampler}", "transposed"
    yield "final.0.conv", "final_conv.0.block.0", "conv"
    yield "final.0.norm", "final_conv.0.block.1", "same"
    yield "final.1", "final_conv.1", "pointwise"


def read_unet(source: Tensors, network: UNet1d, layout: Layout, columns: Tensor) -> dict[str, Tensor]:
    """Our weights, by the names of ``network.state_dict()``.

    Args:
        source: their weights; taken.
        network: of the right shapes; may lie on the meta device.
        layout: of the names.
        columns: which entry of their observation vector each entry of ours is, (To * C,).
    """
    state, out = network.state_dict(), {}
    for ours, theirs, kind in _pairs(network, layout):
        name = f"{layout.prefix}{theirs}"
        weight = source.take(f"{name}.weight", _to_theirs(state[f"{ours}.weight"], kind).shape)
        out[f"{ours}.weight"] = _to_ours(weight, kind).contiguous()
        out[f"{ours}.bias"] = source.take(f"{name}.bias", state[f"{ours}.bias"].shape)
    n_film, time_dim = 2 if network.film_scale else 1, state["film_time.weight"].shape[1]
    weights, biases = [], []
    for (_, theirs), size in zip(_blocks(network), network.film_sizes, strict=True):
        name = f"{layout.prefix}{theirs}.cond_encoder.1"
        weights.append(source.take(f"{name}.weight", (n_film * size, time_dim + len(columns))).chunk(n_film))
        biases.append(source.take(f"{name}.bias", (n_film * size,)).chunk(n_film))
    # Theirs: scale and bias of each block; ours: the scales of all blocks, then their biases.
    weight = torch.cat([block[i] for i in range(n_film) for block in weights])
    out["film_time.bias"] = torch.cat([block[i] for i in range(n_film) for block in biases])
    out["film_time.weight"] = weight[:, :time_dim].contiguous()
    out["film_cond.weight"] = weight[:, time_dim:][:, columns].contiguous()
    return out


def write_unet(network: UNet1d, layout: Layout, columns: Tensor) -> dict[str, Tensor]:
    """Inverse of ``read_unet``."""
    state, out = network.state_dict(), {}
    for ours, theirs, kind in _pairs(network, layout):
        name = f"{layout.prefix}{theirs}"
        out[f"{name}.weight"] = _to_theirs(state[f"{ours}.weight"], kind).contiguous()
        out[f"{name}.bias"] = state[f"{ours}.bias"]
    cond = torch.empty_like(state["film_cond.weight"])
    cond[:, columns] = state["film_cond.weight"]
    weight, bias = torch.cat([state["film_time.weight"], cond], 1), state["film_time.bias"]
    n_film, sizes = 2 if network.film_scale else 1, network.film_sizes
    weights = [part.split(sizes) for part in weight.chunk(n_film)]
    biases = [part.split(sizes) for part in bias.chunk(n_film)]
    for i, (_, theirs) in enumerate(_blocks(network)):
        name = f"{layout.prefix}{theirs}.cond_encoder.1"
        out[f"{name}.weight"] = torch.cat([part[i] for part in weights])
        out[f"{name}.bias"] = torch.cat([part[i] for part in biases])
    return out
