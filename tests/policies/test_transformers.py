"""The transformer and the DiT: against torch's own layers, what sees what, dropout, and the sizes of every network."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs import loader
from data.errors import ConfigError
from policies import build
from policies.heads.meanflow import MeanFlowHead
from policies.networks.attention import causal_mask
from policies.networks.dit import DiT
from policies.networks.transformer import Transformer
from policies.networks.unet1d import UNet1d, _ResBlock
from policies.rng import BatchRng
from tests.policies.conftest import make, make_batch

H, DA, L, C = 5, 2, 3, 4
NETWORKS = {
    "transformer": Transformer,
    "transformer-causal": functools.partial(Transformer, causal=True),
    "transformer-encoder": functools.partial(Transformer, n_cond_layers=1),
    "transformer-encoder-causal": functools.partial(Transformer, n_cond_layers=1, causal=True),
    "transformer-paper": functools.partial(Transformer, n_cond_layers=1, encode_time=True),
    "transformer-paper-causal": functools.partial(Transformer, n_cond_layers=1, encode_time=True, causal=True),
    "dit": DiT,
    "dit-causal": functools.partial(DiT, causal=True),
    "in_context": functools.partial(DiT, conditioning="in_context"),
    "in_context-full": functools.partial(DiT, conditioning="in_context", causal=False),
}
CAUSAL = ("transformer-causal", "transformer-encoder-causal", "transformer-paper-causal", "dit-causal", "in_context")
every_network = pytest.mark.parametrize("name", NETWORKS)


def shaken(name, **options) -> Any:
    """A network whose weights are all far from 0, in double precision."""
    torch.manual_seed(0)
    net = NETWORKS[name](DA, H, (L, C), width=16, n_layers=2, n_heads=2, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def inputs(n=4):
    g = torch.Generator().manual_seed(1)
    x, cond = (torch.randn(n, *shape, dtype=torch.float64, generator=g) for shape in ((H, DA), (L, C)))
    return x, torch.rand(n, dtype=torch.float64, generator=g), cond


@every_network
def test_rows_are_alone_and_what_is_prepared_serves_again(name):
    net = shaken(name)
    x, t, cond = inputs()
    together = net(x, t, net.prepare(cond))
    times = net.embed_times(t)
    for i in range(4):
        row = slice(i, i + 1)
        torch.testing.assert_close(net(x[row], t[row], net.prepare(cond[row])), together[row])
        torch.testing.assert_close(net(x[row], times[row], net.prepare(cond)[row]), together[row])
    twice = net(x.repeat_interleave(2, 0), times[:1], net.prepare(cond).repeat_interleave(2, 0))  # one time for all
    torch.testing.assert_close(twice[::2], net(x, t[:1].expand(4), net.prepare(cond)))
    torch.testing.assert_close(twice[1::2], twice[::2])


@every_network
def test_what_an_action_sees(name):
    """Which actions and observation tokens each action depends on; its time it always does."""
    net = shaken(name)
    x, t, cond = inputs(1)
    to_x, to_t, to_cond = torch.autograd.functional.jacobian(lambda x, t, c: net(x, t, net.prepare(c)), (x, t, cond))
    sees_action = to_x.abs().sum((0, 2, 3, 5)) > 1e-9
    sees_token = to_cond.abs().sum((0, 2, 3, 5)) > 1e-9
    assert torch.equal(sees_action, torch.ones(H, H).tril().bool() if name in CAUSAL else torch.ones(H, H).bool())
    aligned = name in ("transformer-causal", "transformer-encoder-causal")
    assert torch.equal(sees_token, torch.ones(H, L).tril().bool() if aligned else torch.ones(H, L).bool())
    assert (to_t.abs().sum((0, 2, 3)) > 1e-9).all()
    net(x, t, net.prepare(cond)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@every_network
def test_order_matters(name):
    net = shaken(name)
    x, t, cond = inputs()
    out = net(x, t, net.prepare(cond))
    assert (net(x, t, net.prepare(cond.flip(1))) - out).abs().amax() > 1e-3
    assert (net(x.flip(1), t, net.prepare(cond)).flip(1) - out).abs().amax() > 1e-3


def copied(layer: Any, block: Any, memory: tuple[Any, Any] | None = None) -> Any:
    """torch's layer with the weights of one of our blocks; ``memory`` (weight, bias) of its keys and values."""
    pairs = [
        (layer.self_attn.in_proj_weight, block.attention.qkv.weight),
        (layer.self_attn.in_proj_bias, block.attention.qkv.bias),
        *zip(layer.self_attn.out_proj.parameters(), block.attention.out.parameters(), strict=True),
        *zip(layer.linear1.parameters(), block.feed.lin1.parameters(), strict=True),
        *zip(layer.linear2.parameters(), block.feed.lin2.parameters(), strict=True),
        *zip(layer.norm1.parameters(), block.norm1.parameters(), strict=True),
        *zip(layer.norm2.parameters(), block.norm2.parameters(), strict=True),
    ]
    if memory is not None:
        pairs += zip(layer.norm3.parameters(), block.norm3.parameters(), strict=True)
        pairs += zip(layer.multihead_attn.out_proj.parameters(), block.out.parameters(), strict=True)
        pairs.append((layer.multihead_attn.in_proj_weight, torch.cat([block.query.weight, memory[0]])))
        pairs.append((layer.multihead_attn.in_proj_bias, torch.cat([block.query.bias, memory[1]])))
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    assert len(pairs) == len(list(layer.parameters()))
    return layer


OPTIONS: dict[str, Any] = {
    "dim_feedforward": 64,
    "activation": "gelu",
    "batch_first": True,
    "norm_first": True,
    "dropout": 0.0,
}


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("transformer")])
def test_transformer_is_torch_s_decoder_over_one_memory(name):
    net = shaken(name)
    x, t, cond = inputs()
    masked = name in CAUSAL
    tokens = net.cond_input(cond) + net.position_cond
    if "encoder" in name:
        layer = copied(nn.TransformerEncoderLayer(16, 2, **OPTIONS).double(), net.encoder[0])
        tokens = layer(tokens, src_mask=causal_mask(L, L).double() if masked else None)
    else:
        tokens = net.mlp(tokens)
    memory = torch.cat([net.time(t)[:, None], tokens], 1)
    if "paper" in name:
        layer = copied(nn.TransformerEncoderLayer(16, 2, **OPTIONS).double(), net.encoder[0])
        time = (net.time(t) + net.position_time)[:, None]
        memory = layer(torch.cat([time, net.cond_input(cond) + net.position_cond], 1))
    h = net.input(x) + net.position
    for block, weight, bias in zip(net.decoder, net.memory.weight.chunk(2), net.memory.bias.chunk(2), strict=True):
        layer = copied(nn.TransformerDecoderLayer(16, 2, **OPTIONS).double(), block, (weight, bias))
        sees = torch.ones(H, H).tril().bool(), torch.arange(H)[:, None] >= torch.arange(1 + L)[None] - 1
        h = layer(h, memory, tgt_mask=~sees[0], memory_mask=~sees[1]) if masked else layer(h, memory)
    torch.testing.assert_close(net(x, t, net.prepare(cond)), net.output(net.norm(h)))


@pytest.mark.parametrize("name", ["in_context", "in_context-full"])
def test_in_context_is_one_sequence(name):
    """Observation, time and actions through torch's encoder at once, as if nothing were computed beforehand."""
    net = shaken(name)
    x, t, cond = inputs()
    own = torch.cat([net.time(t)[:, None], net.input(x)], 1) + net.position
    h = torch.cat([net.cond_input(cond) + net.position_cond, own], 1)
    hidden = torch.ones(L + 1 + H, L + 1 + H).triu(1).bool()
    if name == "in_context-full":
        hidden[:] = False
        hidden[:L, L:] = True
    for block in net.blocks:
        layer = copied(nn.TransformerEncoderLayer(16, 2, **OPTIONS).double(), block)
        h = layer(h, src_mask=hidden)
    torch.testing.assert_close(net(x, t, net.prepare(cond)), net.output(net.norm(h[:, L + 1 :])))


def test_adaln_by_its_formula():
    """Peebles & Xie, figure 3, with one linear map of SiLU([time, observation])."""
    net = shaken("dit")
    x, t, cond = inputs()
    weight = torch.cat([net.modulate_time.weight, net.modulate_cond.weight], 1)
    both = torch.cat([net.time(t), net.cond_input(cond.flatten(1))], 1)
    parts = F.linear(F.silu(both), weight, net.modulate_time.bias)[:, None].chunk(14, -1)
    h = net.input(x) + net.position
    for i, block in enumerate(net.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = parts[6 * i : 6 * i + 6]
        attention = nn.MultiheadAttention(16, 2, batch_first=True).double()
        with torch.no_grad():
            pairs = zip(attention.parameters(), block.attention.parameters(), strict=True)  # both: in, out
            for theirs, ours in pairs:
                theirs.copy_(ours)
        seen = F.layer_norm(h, (16,)) * scale1 + shift1
        h = h + gate1 * attention(seen, seen, seen)[0]
        h = h + gate2 * block.feed(F.layer_norm(h, (16,)) * scale2 + shift2)
    expected = net.output(F.layer_norm(h, (16,)) * parts[13] + parts[12])
    torch.testing.assert_close(net(x, t, net.prepare(cond)), expected)


def test_adaln_starts_as_nothing():
    """All gates and the output are 0, scales 1, and everything still learns after the first steps."""
    torch.manual_seed(0)
    net = DiT(DA, H, (L, C), width=16, n_layers=2, n_heads=2).double()
    x, t, cond = inputs()
    assert not net(x, t, net.prepare(cond)).any()
    modulation = (net.embed_times(t) + net.prepare(cond)).view(4, 14, 16)
    assert torch.equal(modulation, torch.tensor(([0.0, 1, 0] * 5)[:14], dtype=torch.float64)[:, None].expand(4, 14, 16))
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(4):
        (net(x, t, net.prepare(cond)) - x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())


@every_network
def test_dropout_is_of_what_gradients_are_recorded_of(name):
    net, still = shaken(name, dropout=0.3), shaken(name)
    x, t, cond = inputs()
    still_out = still(x, t, still.prepare(cond))

    def out():
        return net(x, t, net.prepare(cond))

    torch.manual_seed(0)
    first = out()
    assert not torch.equal(first, out())
    torch.manual_seed(0)
    assert torch.equal(first, out())
    with torch.no_grad():
        torch.testing.assert_close(out(), still_out)
    net.eval()
    torch.testing.assert_close(out(), still_out)


def test_meanflow_s_target_has_no_dropout():
    head = MeanFlowHead(shaken("transformer", n_times=2, dropout=0.5))
    x, t, cond = inputs()
    prepared = head.network.prepare(cond)
    one, two = (head.target(x, x.flip(0), t, 0.5 * t, prepared) for _ in range(2))
    assert torch.equal(one, two)


def test_dropout_in_training_repeats_with_the_seed(state_store):
    policy = make(state_store, "flow", "transformer").train()
    batch = make_batch(state_store, 4)

    def loss(seed):
        torch.manual_seed(seed)
        return policy.loss(batch, BatchRng(0))[0]

    assert torch.equal(loss(0), loss(0))
    assert not torch.equal(loss(0), loss(1))


@pytest.mark.parametrize(
    ("make_network", "message"),
    [
        (lambda: Transformer(2, 4, (1, 3), width=10, n_heads=4), "width=10 must be a multiple of n_heads=4"),
        (lambda: Transformer(2, 4, (1, 3), encode_time=True), "encode_time needs n_cond_layers >= 1"),
        (lambda: DiT(2, 4, (1, 3), width=10, n_heads=4), "width=10 must be a multiple of n_heads=4"),
        (lambda: DiT(2, 4, (1, 3), dropout=1.5), "dropout=1.5"),
        (lambda: UNet1d(2, 4, (1, 3), n_blocks=0), "n_blocks=0"),
    ],
)
def test_bad_options(make_network, message):
    with pytest.raises(ValueError, match=message):
        make_network()


def network_of(*overrides):
    return loader.load_config("train", list(overrides))["network"]


@pytest.mark.parametrize("network", build.NETWORKS)
def test_sizes_grow(network):
    config = loader._compose("train", [f"network={network}"])
    counts = []
    for size in ("tiny", "small", "paper"):
        config.network.size = size
        options = loader._resolve(config)["network"]
        with torch.device("meta"):  # shapes without weights
            net = build.NETWORKS[options.pop("name")](4, 16, (2, 9), **options)
        counts.append(sum(p.numel() for p in net.parameters()))
    assert counts[0] < counts[1] < counts[2]


def test_options_win_over_sizes():
    """And what a run keeps is what was chosen, not the table it was chosen from."""
    assert network_of() == {"name": "mlp", "hidden_dim": 512, "n_blocks": 3, "time_dim": 64}
    small = {"down_dims": [64, 128, 256], "n_blocks": 2, "kernel_size": 5, "n_groups": 8, "n_groups_out": None}
    assert network_of("network=unet1d") == {"name": "unet1d", **small, "time_dim": 128, "film_scale": True}
    paper = network_of("network=transformer", "network.size=paper", "network.n_layers=3")
    assert (paper["width"], paper["n_layers"]) == (256, 3)
    simple = network_of("network=unet1d", "network.size=simple_dp3")
    assert (simple.pop("name"), simple["down_dims"]) == ("unet1d", [128, 256, 384])
    blocks = [m for m in UNet1d(4, 16, (2, 9), **simple).modules() if isinstance(m, _ResBlock)]
    assert len(blocks) == 3 + 1 + 2
    with pytest.raises(ConfigError, match=r"Unknown network\.size 'papr'\. Did you mean 'paper'"):
        network_of("network.size=papr")
