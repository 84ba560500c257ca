"""torch.compile around policies: ``compile=true`` in training and in inference."""

import jaxtyping
import pytest
import torch

from algos.residual import Residual
from data.errors import ConfigError
from policies.checkpoint import load_policy, save_policy
from policies.compiled import compile_policy
from policies.inference.evaluations import count_evaluations
from policies.inference.execution import build_execution
from policies.rng import BatchRng
from tests.policies.conftest import POLICIES, config, make, make_batch

WITHOUT_MACHINE_CODE = {"backend": "aot_eager"}  # all of torch.compile but the last step, which takes minutes
UNLIKE = ("flow", "meanflow")  # one of the heads that ask their network for its value; the one for its derivative


@pytest.fixture(autouse=True)
def untyped():
    """torch.compile cannot look through jaxtyping's checks, which only tests make."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "policy_name", [pytest.param(p, marks=[pytest.mark.slow] * (p not in UNLIKE)) for p in POLICIES]
)
def test_networks_learn_alike(state_store, policy_name):
    policy, batch = make(state_store, policy_name), make_batch(state_store, 16)

    def gradient():
        policy.zero_grad()
        loss, _ = policy.loss(batch, BatchRng(5))
        loss.backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    plain = gradient()
    policy.head.network.compile(**WITHOUT_MACHINE_CODE)
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.parametrize("policy_name", POLICIES)
def test_policies_act_alike(store, tmp_path, policy_name):
    policy = make(store, policy_name).eval()
    save_policy(tmp_path / "plain", policy, config(policy_name, "mlp"))
    obs, noise = make_batch(store, 1).obs, policy.draw_noise(1)
    with count_evaluations(policy) as plain:
        expected = policy.act(obs, noise=noise)
    compile_policy(policy, **WITHOUT_MACHINE_CODE)
    with count_evaluations(policy) as compiled:
        for _ in range(2):
            torch.testing.assert_close(policy.act(obs, noise=noise), expected)
    assert compiled.n == 2 * plain.n
    save_policy(tmp_path / "compiled", policy, config(policy_name, "mlp"))
    assert torch.equal(load_policy(tmp_path / "compiled").act(obs, noise=noise), expected)


@pytest.mark.parametrize("execution", ["rtc", "rti"])
def test_late_chunks_continue_alike(state_store, execution):
    """Guidance takes gradients through the compiled network."""
    obs = make_batch(state_store, 1).obs

    def chunks(policy):
        acting = build_execution(policy, {"name": execution, "delay": 2 if execution == "rtc" else 0})
        memory, generator, out = None, torch.Generator().manual_seed(0), []
        for _ in range(3):
            actions, memory = acting.act_from(obs, memory, generator)
            out.append(actions)
        return out

    policy = make(state_store, "flow").eval()
    plain = chunks(policy)
    compile_policy(policy, **WITHOUT_MACHINE_CODE)
    torch.testing.assert_close(chunks(policy), plain)


def test_what_a_policy_is_made_of_is_compiled(state_store):
    base = make(state_store, "flow").eval()
    learner = Residual(base, 1, hold=4)
    compile_policy(learner.policy, **WITHOUT_MACHINE_CODE)
    assert "forward" in vars(base.head.network)
    assert "forward" in vars(base.encoder)


def test_machine_code_needs_a_compiler(state_store, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not there"):
        compile_policy(make(state_store, "flow"))


@pytest.mark.slow
def test_machine_code_acts_alike(store):
    policy = make(store, "flow", "unet1d").eval()
    obs, noise = make_batch(store, 1).obs, policy.draw_noise(1)
    expected = policy.act(obs, noise=noise)
    compile_policy(policy)
    torch.testing.assert_close(policy.act(obs, noise=noise), expected, atol=1e-4, rtol=1e-4)
