"""Behaviour cloning as a learner: EMA, schedule, updates, state."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from algos.bc import BC, warmup_cosine
from algos.ema import EMA
from data.chunks import ChunkBatch
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from launch.run import global_rng_state, set_global_rng_state
from policies.build import build_policy

CONFIG = {
    "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "encoder": {"state": {"hidden": [8]}},
    "policy": {"name": "flow"}, "network": {"name": "mlp", "hidden_dim": 16, "n_blocks": 1, "time_dim": 8},
}  # fmt: skip
SPEC = TaskSpec("t", {"state": FieldSpec((3,), "float32", "state")}, FieldSpec((2,), "float32", "action"))


def make_bc(network=None, **options) -> BC:
    torch.manual_seed(0)
    range01 = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.3}
    statistics = {
        key: {name: torch.full((dim,), value) for name, value in range01.items()}
        for key, dim in (("action", 2), ("state", 3))
    }
    normaliser = Normaliser({"action": "minmax", "state": "minmax"}, statistics)
    policy = build_policy({**CONFIG, "network": network or CONFIG["network"]}, SPEC, normaliser)
    return BC(policy, Accelerator(cpu=True), **{"train_steps": 20, "lr": 1e-2, "lr_warmup_steps": 4, **options})


def batch(seed: int, scale: float = 1.0) -> ChunkBatch:
    g = torch.Generator().manual_seed(seed)
    action = scale * torch.rand(6, 8, 2, generator=g)
    return ChunkBatch({"state": torch.rand(6, 2, 3, generator=g)}, action, torch.zeros(6, 8, dtype=torch.bool))


def weights_of(bc: BC) -> dict[str, torch.Tensor]:
    both = {**{f"source.{k}": v for k, v in bc.source.state_dict().items()}, **bc.policy.state_dict()}
    return {k: v.clone() for k, v in both.items()}


def test_ema_against_its_formula():
    model = nn.Linear(3, 2)
    ema = EMA(model, power=0.75, max_decay=0.8)
    expected = model.weight.detach().clone().double()
    for n in range(1, 15):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        ema.update()
        decay = min(0.8, 1 - (1 + n) ** -0.75)
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(ema.model.weight.double(), expected, atol=1e-6, rtol=1e-6)
    assert decay == 0.8  # both branches were seen
    assert not ema.model.training
    assert not ema.model.weight.requires_grad


def test_warmup_cosine():
    factor = [warmup_cosine(step, 10, 110) for step in range(130)]
    assert factor[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factor[10] == 1.0
    assert factor[60] == pytest.approx(0.5)
    assert factor[35] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor[110:] == pytest.approx([0.0] * 20)
    assert all(b <= a for a, b in itertools.pairwise(factor[9:]))
    assert warmup_cosine(0, 0, 10) == 1.0


def test_schedule_takes_one_step_per_update():
    """Under accelerate too, whose wrapper would advance it once per process."""
    bc = make_bc()
    for step in range(20):
        assert bc.optimiser.param_groups[0]["lr"] == pytest.approx(1e-2 * warmup_cosine(step, 4, 20))
        metrics = bc.update(batch(step))
        assert float(metrics["lr"]) == pytest.approx(1e-2 * warmup_cosine(step + 1, 4, 20))


def test_updates_learn_and_the_average_follows():
    bc = make_bc(train_steps=300, lr_warmup_steps=1)
    losses = [float(bc.update(batch(0))["loss"]) for _ in range(300)]
    assert sum(losses[-30:]) < 0.7 * sum(losses[:30])
    assert not bc.policy.training
    for average, source in zip(bc.policy.parameters(), bc.source.parameters(), strict=True):
        assert not average.requires_grad
        assert source.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(bad):
    bc = make_bc()
    bc.update(batch(0))
    before, optimiser = weights_of(bc), copy.deepcopy(bc.optimiser.state_dict())
    schedule, n = bc.schedule.state_dict(), bc.ema.n_updates
    metrics = bc.update(batch(1, scale=bad))
    assert not math.isfinite(float(metrics["loss"]))
    after = weights_of(bc)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert str(optimiser) == str(bc.optimiser.state_dict())
    assert (schedule, n) == (bc.schedule.state_dict(), bc.ema.n_updates)
    bc.update(batch(2))
    assert all(torch.isfinite(v).all() for v in weights_of(bc).values())


@pytest.mark.parametrize("network", [None, {"name": "transformer", "width": 8, "n_layers": 1, "dropout": 0.3}])
def test_state_round_trip_continues_bit_exactly(tmp_path, network):
    """With dropout too: its masks come from torch's generator, which a run saves beside this state."""
    bc = make_bc(network)
    for i in range(5):
        bc.update(batch(i))
    torch.save({"bc": bc.state_dict(), "rng": global_rng_state()}, tmp_path / "state.pt")
    expected = [bc.update(batch(i)) for i in range(5, 9)]
    other = make_bc(network, seed=99)
    other.update(batch(77))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["bc"])
    set_global_rng_state(state["rng"])
    for i, a in enumerate(expected, start=5):
        b = other.update(batch(i))
        assert {k: float(v) for k, v in a.items()} == {k: float(v) for k, v in b.items()}
    a, b = weights_of(bc), weights_of(other)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradient_clipping(limit):
    """The norm that is reported is the one before clipping; 0 clips nothing."""
    bc, seen = make_bc(grad_clip=limit, seed=4), []
    step = bc.optimiser.step
    bc.optimiser.step = lambda: (seen.append(norm_of(bc)), step())
    reported = float(bc.update(batch(0))["grad_norm"])
    assert reported > 1e-2
    assert seen == [pytest.approx(limit or reported, rel=1e-3)]


def norm_of(bc: BC) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in bc.source.parameters() if p.grad is not None))
