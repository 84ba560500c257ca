"""ONNX files answer as the policy does."""

import json

import onnxruntime
import pytest
import torch

from data.errors import ConfigError, ContractError
from policies import export
from policies.black_box import BlackBox
from tests.policies.conftest import make, make_batch, make_store

CASES = [
    (("pointcloud", "state"), "flow", "unet1d", {}),
    (("rgb",), "diffusion-ddpm", "mlp", {"n_inference_steps": 2}),
    (("state",), "edm", "unet1d", {"cfg_dropout": 0.1, "cfg_scale": 2.0}),
]


@pytest.mark.slow  # the one of tests/entry/test_commands.py is not
@pytest.mark.parametrize(("keys", "head", "network", "options"), CASES)
def test_the_file_answers_alike(tmp_path, keys, head, network, options):
    store = make_store(tmp_path / "d.zarr", keys)
    policy = make(store, head, network, **options).eval()
    obs = {k: v[:1] for k, v in make_batch(store, 1).obs.items()}
    found = export.export_onnx(policy, tmp_path / "p.onnx", obs, trials=3)
    assert found.max_difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"))
    assert {i.name: tuple(i.shape) for i in session.get_inputs()} == {
        **{k: tuple(v.shape) for k, v in obs.items()}, "noise": (1, *policy.noise_shape)
    }  # fmt: skip
    noise = policy.draw_noise(1)
    (action,) = session.run(None, {**{k: v.numpy() for k, v in obs.items()}, "noise": noise.numpy()})
    torch.testing.assert_close(torch.from_numpy(action), policy.act(obs, noise=noise), atol=1e-4, rtol=0)
    assert json.loads(session.get_modelmeta().custom_metadata_map["deft"])["task"]["name"] == "test/task"


def test_a_file_that_answers_otherwise_is_refused(state_store, tmp_path, monkeypatch):
    policy = make(state_store).eval()
    obs = {k: v[:1] for k, v in make_batch(state_store, 1).obs.items()}
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ContractError, match="answers differently"):
        export.export_onnx(policy, tmp_path / "p.onnx", obs, trials=1)


def test_other_policies_are_refused(state_store, tmp_path):
    policy = make(state_store)
    box = BlackBox(
        policy.spec, policy.normaliser, source="a:b", n_obs_steps=2, n_action_steps=4, act=lambda obs: obs["state"]
    )
    with pytest.raises(ConfigError, match="writes imitation policies; this is a BlackBox"):
        export.export_onnx(box, tmp_path / "p.onnx", {})
