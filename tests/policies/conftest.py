import numpy as np
import pytest
import torch

from data.chunks import ChunkBatch, ChunkDataset
from data.episodes import EpisodeStore
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from policies.build import build_policy, normaliser_modes

torch.set_num_threads(1)

FIELDS = {
    "state": FieldSpec((7,), "float32", "state"),
    "pointcloud": FieldSpec((32, 3), "float32", "pointcloud"),
    "rgb": FieldSpec((64, 64, 3), "uint8", "rgb"),
    "depth": FieldSpec((64, 64), "float32", "depth"),
    "rgb_left": FieldSpec((48, 48, 3), "uint8", "rgb"),
    "rgb_right": FieldSpec((48, 48, 3), "uint8", "rgb"),
    "coloured": FieldSpec((32, 6), "float32", "pointcloud"),
    "force": FieldSpec((8, 6), "float32", "force"),
    "goal": FieldSpec((5,), "float32", "goal"),
    "language": FieldSpec((16,), "float32", "language"),
    "goal_image": FieldSpec((48, 48, 3), "uint8", "goal"),
}
OBS = [("state",), ("pointcloud", "state"), ("rgb", "state"), ("depth",), ("rgb", "pointcloud", "state")]
MORE_OBS = [("force", "goal", "language", "coloured", "state"), ("force", "rgb_left", "rgb_right")]
POLICIES = {
    "diffusion-epsilon": {"name": "diffusion", "prediction": "epsilon", "n_inference_steps": 5},
    "diffusion-sample": {"name": "diffusion", "prediction": "sample", "n_inference_steps": 5},
    "diffusion-ddpm": {"name": "diffusion", "sampler": "ddpm", "n_train_steps": 20, "n_inference_steps": 20},
    "flow": {"name": "flow", "n_inference_steps": 5},
    "edm": {"name": "edm"},
    "meanflow": {"name": "meanflow"},
    "omp": {"name": "meanflow", "derivative": "difference", "alignment": 0.1, "n_inference_steps": 2},
    "shortcut": {"name": "shortcut", "n_inference_steps": 2},
    "flowpolicy": {"name": "flowpolicy", "delta": 0.2},
    "consistency": {"name": "consistency", "n_levels": 20, "skip": 4, "denoiser": {"name": "flow"}},
    "ctm": {
        "name": "ctm",
        "n_levels": 20,
        "n_inference_steps": 3,
        "denoiser": {"name": "diffusion", "prediction": "sample"},
    },
}
NETWORKS = {
    "unet1d": {"name": "unet1d", "down_dims": [32, 64], "time_dim": 16},
    "mlp": {"name": "mlp", "hidden_dim": 64, "n_blocks": 2, "time_dim": 16},
    "transformer": {"name": "transformer", "width": 32, "n_layers": 2, "n_heads": 2, "causal": True, "dropout": 0.01},
    "dit": {"name": "dit", "width": 32, "n_layers": 2, "n_heads": 2},
    "dit-in_context": {"name": "dit", "conditioning": "in_context", "width": 32, "n_layers": 2, "n_heads": 2},
}
ENCODER = {
    "state": {"hidden": [32]},
    "pointcloud": {"hidden": [16, 32], "out_dim": 16, "relative_to": "state"},
    "rgb": {"width": 8, "n_keypoints": 4, "out_dim": 16},
    "depth": {"width": 8, "n_keypoints": 4, "out_dim": 16},
    "force": {"width": 8, "n_layers": 3, "out_dim": 8},
    "goal": {"hidden": [8]},
    "language": {"out_dim": 8},
}


def task(keys) -> TaskSpec:
    return TaskSpec("test/task", {k: FIELDS[k] for k in keys}, FieldSpec((3,), "float32", "action"))


def make_store(path, keys, n_episodes=2, length=20) -> EpisodeStore:
    rng = np.random.default_rng(0)
    spec = task(keys)
    store = EpisodeStore.create(path, spec)
    for _ in range(n_episodes):
        episode = {"action": rng.uniform(-1, 1, (length, 3)).astype("float32")}
        for key, field in spec.obs.items():
            shape = (length, *field.shape)
            if field.dtype == "uint8":
                episode[key] = rng.integers(0, 256, shape, dtype="uint8")
            else:
                episode[key] = rng.uniform(0.1, 1, shape).astype("float32")
        store.append(episode)
    return store


def config(policy, network, encoder=ENCODER, **changes) -> dict:
    return {
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "policy": {**POLICIES[policy], **changes},
        "network": dict(NETWORKS[network]),
        "encoder": encoder,
    }


def make(store: EpisodeStore, policy="flow", network="mlp", seed=0, **changes):
    torch.manual_seed(seed)
    assert store.task is not None
    normaliser = Normaliser.fit(store, normaliser_modes(store.task))
    return build_policy(config(policy, network, **changes), store.task, normaliser)


def make_batch(store: EpisodeStore, n=16) -> ChunkBatch:
    assert store.task is not None
    dataset = ChunkDataset(store, obs_keys=list(store.task.obs), n_obs_steps=2, horizon=8)
    return dataset.batch(torch.arange(n))


@pytest.fixture(params=OBS + MORE_OBS, ids="+".join)
def store(request, tmp_path):
    """Demonstrations with random contents."""
    return make_store(tmp_path / "demo.zarr", request.param)


@pytest.fixture
def state_store(tmp_path):
    return make_store(tmp_path / "demo.zarr", ("state",))


@pytest.fixture
def obs(state_store):
    """Three windows of states."""
    return make_batch(state_store, 3).obs


def pytest_collection_modifyitems(items):
    """Every observation with two heads, or one, the others with states alone: heads see nothing but tokens.

    The slower networks with states and three heads, and learning with one. What takes long is marked slow, but for each
    head, each observation and each network once.
    """

    def wanted(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        obs, head = params.get("store", ("state",)), params.get("policy_name", "flow")
        if params.get("network", "mlp") not in ("mlp", "unet1d"):
            slow = item.originalname == "test_overfits_one_batch"
            return obs == ("state",) and (head == "flow" or (head in ("diffusion-epsilon", "meanflow") and not slow))
        if obs in MORE_OBS:
            cheap = "rgb_left" not in obs or item.originalname != "test_overfits_one_batch"
            return cheap and head == "flow" and params.get("network", "mlp") == "mlp"
        return obs == ("state",) or head in ("flow", "diffusion-ddpm")

    def slow(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        usual = [params.get("store") == ("state",), params.get("network") == "mlp", params.get("policy_name") == "flow"]
        if item.originalname == "test_overfits_one_batch":
            return sum(usual) < 2 or params["network"] == "unet1d"
        return item.originalname == "test_policies_act_alike" and not (usual[0] or usual[2])

    items[:] = [item for item in items if wanted(item)]
    for item in items:
        if slow(item):
            item.add_marker(pytest.mark.slow)
