"""Weights of Diffusion Policy's TransformerForDiffusion, made of torch's layers, as ours."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.foreign.tensors import Tensors
from policies.networks.transformer import Transformer


def read_transformer(source: Tensors, network: Transformer, columns: Tensor) -> dict[str, Tensor]:
    """Our weights, by the names of ``network.state_dict()``.

    Their memory is an MLP of all tokens alike, position embeddings added; in ours the time's token has one of its own,
    whose first bias takes in its position: W (s + p) + b = W s + (b + W p).

    Args:
        source: their weights; taken.
        network: of the right shapes; may lie on the meta device.
        columns: which entry of a frame of their observation each entry of ours is, (C,).
    """
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    width, out = shapes["position"][1], {}
    if network.self_mask is not None:  # theirs are the same by construction
        source.drop(lambda name: name in ("model.mask", "model.memory_mask"))

    def layer(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            out[f"{ours}.{part}"] = source.take(f"model.{theirs}.{part}", shapes[f"{ours}.{part}"])

    def attention(theirs: str) -> dict[str, Tensor]:
        name = f"model.{theirs}.in_proj_"
        shape = {"weight": (3 * width, width), "bias": (3 * width,)}
        return {part: source.take(name + part, shape[part]) for part in shape}

    def block(ours: str, theirs: str) -> None:
        for part, x in attention(f"{theirs}.self_attn").items():
            out[f"{ours}.attention.qkv.{part}"] = x
        layer(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
        layer(f"{ours}.norm1", f"{theirs}.norm1")
        layer(f"{ours}.norm2", f"{theirs}.norm2")
        layer(f"{ours}.feed.lin1", f"{theirs}.linear1")
        layer(f"{ours}.feed.lin2", f"{theirs}.linear2")

    layer("input", "input_emb")
    layer("cond_input", "cond_obs_emb")
    out["cond_input.weight"] = out["cond_input.weight"][:, columns].contiguous()
    out["position"] = source.take("model.pos_emb", (1, *shapes["position"]))[0]
    n_tokens = shapes["position_cond"][0]
    position = source.take("model.cond_pos_emb", (1, 1 + n_tokens, width))[0]
    out["position_cond"] = position[1:].contiguous()
    if network.encode_time:
        out["position_time"] = position[:1].contiguous()
        for i in range(len(network.encoder)):
            block(f"encoder.{i}", f"encoder.layers.{i}")
    else:
        for i in (0, 2):
            layer(f"mlp.{i}", f"encoder.{i}")
            out |= {f"time.mlp.{i}.{part}": out[f"mlp.{i}.{part}"].clone() for part in ("weight", "bias")}
        out["time.mlp.0.bias"] += out["mlp.0.weight"] @ position[0]
    memory: dict[str, list[Tensor]] = {"weight": [], "bias": []}
    for i in range(network.n_layers):
        ours, theirs = f"decoder.{i}", f"decoder.layers.{i}"
        block(ours, theirs)
        layer(f"{ours}.norm3", f"{theirs}.norm3")
        layer(f"{ours}.out", f"{theirs}.multihead_attn.out_proj")
        for part, x in attention(f"{theirs}.multihead_attn").items():
            out[f"{ours}.query.{part}"] = x[:width].contiguous()
            memory[part].append(x[width:])
    out |= {f"memory.{part}": torch.cat(parts) for part, parts in memory.items()}
    layer("norm", "ln_f")
    layer("output", "head")
    return out
