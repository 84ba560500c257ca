"""LeRobot's checkpoints: read in place, written, refused; and, where LeRobot is installed, judged by itself.

LeRobot: benchmarks/peers/install_lerobot.sh, and DEFT_PEERS=its environment where that is not .venv-peers.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import ConfigError, ContractError, DataError
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from launch.contract import take_environment
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import load_policy, read_config, save_policy
from policies.foreign.lerobot import default_key
from policies.foreign.lerobot_write import write_lerobot
from tests.policies.lerobot_cases import CASES, statistics

FIELDS = {
    "hand": FieldSpec((3,), "float32", "state"),
    "objects": FieldSpec((4,), "float32", "state"),
    "goal_state": FieldSpec((2,), "float32", "state"),
    "rgb_top": FieldSpec((48, 56, 3), "uint8", "rgb"),
    "rgb_wrist": FieldSpec((48, 56, 3), "uint8", "rgb"),
}
SAMPLER, NETWORK = {"spacing": "leading"}, {"name": "unet1d", "down_dims": [8, 16], "time_dim": 16}
RGB = {"n_keypoints": 4, "out_dim": 8, "relu": True, "crop": [44, 46], "shared": True}


def made(keys, policy=SAMPLER, network=NETWORK, **sections):
    """One of our policies with a U-Net that LeRobot has a counterpart for; (policy, its checkpoint's config.json)."""
    torch.manual_seed(0)
    task = TaskSpec("test/task", {k: FIELDS[k] for k in keys}, FieldSpec((2,), "float32", "action"), env_args={"a": 1})
    vectors = {k: f.shape for k, f in task.obs.items() if not f.is_image}
    stats = statistics({**vectors, "action": (2,)})
    config = {
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "policy": {"name": "diffusion", "n_inference_steps": 5, **policy},
        "network": network,
        "encoder": {"state": {"hidden": []}, "rgb": RGB},
        **sections,
    }
    built = build_policy(config, task, Normaliser(normaliser_modes(task), stats)).eval()
    return built, {"config": config, "meta": {"train_config": {"task": {"suite": "toy"}}}}


def watched(policy, n=2, seed=0):
    """Observations within a policy's range, and noise."""
    generator = torch.Generator().manual_seed(seed)
    obs = {}
    for key, field in policy.spec.obs.items():
        shape = (n, policy.n_obs_steps, *field.shape)
        if field.is_image:
            obs[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            low, high = (policy.normaliser.statistic(key, name) for name in ("min", "max"))
            obs[key] = low + torch.rand(shape, generator=generator) * (high - low)
    return obs, policy.draw_noise(n, generator)


@pytest.fixture
def folder(tmp_path):
    """A folder of LeRobot's, without what only we write into one."""
    path = write_lerobot(*made(["hand", "objects"]), tmp_path / "theirs")
    (path / "deft.json").unlink()
    for file in path.glob("policy_*.safetensors"):
        save_file({k: v for k, v in load_file(file).items() if not k.endswith(("centre", "scale"))}, file)
    return path


# ---------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        (["objects"], {}),  # one state in two halves
        (["objects", "hand", "goal_state"], {"policy": {**SAMPLER, "sampler": "ddpm", "prediction": "sample"}}),
        (["hand"], {"network": {**NETWORK, "film_scale": False, "kernel_size": 3, "n_groups": 4, "n_groups_out": 8}}),
        (["rgb_wrist", "objects", "rgb_top", "hand"], {}),
    ],
    ids=["one", "several", "options", "images"],
)
def test_there_and_back_nothing_has_changed(tmp_path, keys, options):
    ours, document = made(keys, **options)
    folder = write_lerobot(ours, document, tmp_path / "lerobot")
    back = load_policy(folder)
    assert back.spec == ours.spec
    assert list(back.spec.obs) == keys
    assert read_config(folder)["meta"] == document["meta"]
    obs, noise = watched(ours)
    assert torch.equal(back.act(obs, noise=noise), ours.act(obs, noise=noise))
    config = json.loads((folder / "config.json").read_text())
    assert config["type"] == "diffusion"
    assert "observation.state" in config["input_features"]
    images = [k for k, v in config["input_features"].items() if v["type"] == "VISUAL"]
    assert images == [f"observation.images.{k[4:]}" for k in keys if k.startswith("rgb")]
    # Read again and saved as our own, it is an ordinary checkpoint.
    save_policy(tmp_path / "ours", back, read_config(folder)["config"])
    assert torch.equal(load_policy(tmp_path / "ours").act(obs, noise=noise), ours.act(obs, noise=noise))


def test_without_what_we_add_the_actions_stay(folder):
    ours, _ = made(["hand", "objects"])
    theirs = load_policy(folder)
    obs, noise = watched(ours)
    renamed = dict(zip(["state", "environment_state"], obs.values(), strict=True))
    torch.testing.assert_close(theirs.act(renamed, noise=noise), ours.act(obs, noise=noise), rtol=0, atol=2e-6)


def test_fine_tuned_policies_hold_it(folder, tmp_path):
    """A wrapper's checkpoint rebuilds the base without the folder, with images that the normaliser scales too."""
    from algos.steered import SteeredPolicy
    from policies.checkpoint import wrapped_config

    config = read_config(folder)["config"]
    base = load_policy(folder)
    steered = SteeredPolicy(base)
    save_policy(tmp_path / "steered", steered, wrapped_config(steered, config))
    obs, noise = watched(base)
    again = load_policy(tmp_path / "steered")
    assert torch.equal(again.act(obs, noise=noise), steered.act(obs, noise=noise))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": {"name": "flow", "n_inference_steps": 5}}, "FlowHead"),
        ({"policy": {"spacing": "trailing"}}, "policy.spacing=trailing"),
        ({"policy": {**SAMPLER, "prediction": "v"}}, "policy.prediction=v"),
        ({"network": {"name": "mlp"}}, "ResidualMLP"),
        ({"encoder": {"state": {"hidden": [8]}}}, "an MLP on 'hand'.*an MLP on 'objects'"),
        ({"horizon": 6, "n_action_steps": 4}, r"horizon=6 \(a multiple of 4\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, named):
    policy, document = made(["hand", "objects"], **changes)
    with pytest.raises(ConfigError, match=named):
        write_lerobot(policy, document, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_image_encoders_that_lerobot_has_not(tmp_path):
    """As Diffusion Policy's are read."""
    rgb = {"pool": "mean", "out_dim": None, "resize": [44, 46], "antialias": False}
    policy, document = made(["rgb_top"], encoder={"state": {"hidden": []}, "rgb": rgb})
    with pytest.raises(ConfigError, match=r"pool \(keypoints\).*out_dim \(a number\).*antialias.*relu"):
        write_lerobot(policy, document, tmp_path / "x")


# ---------------------------------------------------------------------------------------------- names, environments


def test_names(folder):
    assert [default_key(f"observation.{n}") for n in ("state", "images.top", "image", "images.cam.left")] == [
        "state", "rgb_top", "rgb", "rgb_cam_left",
    ]  # fmt: skip
    plain = load_policy(folder)
    assert {k: f.shape for k, f in plain.spec.obs.items()} == {"state": (3,), "environment_state": (4,)}
    obs, noise = watched(plain)
    wanted = plain.act(obs, noise=noise)
    whole = load_policy(folder, features={"observation.state": "s", "observation.environment_state": "s"})
    assert torch.equal(whole.act({"s": torch.cat(list(obs.values()), -1)}, noise=noise), wanted)
    halves = load_policy(folder, features={"observation.environment_state": {"goal": 3, "state": 1}})
    assert {k: f.shape for k, f in halves.spec.obs.items()} == {"state": (4,), "goal": (3,)}
    env = obs["environment_state"]
    crossed = {"state": torch.cat([obs["state"], env[..., 3:]], -1), "goal": env[..., :3]}
    torch.testing.assert_close(halves.act(crossed, noise=noise), wanted, rtol=0, atol=5e-6)  # sums in another order
    for wrong, message in (
        ({"observation.sate": "s"}, "no feature 'observation.sate'. Did you mean 'observation.state'"),
        ({"observation.state": {"a": 2}}, "must add up"),
        ({"observation.state": "a.b"}, "without dots"),
        ({"observation.state": 3}, "must be a key"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_policy(folder, features=wrong)


def test_the_environment_is_asked_for(folder):
    names = {"observation.state": "s", "observation.environment_state": "state"}
    with pytest.raises(ConfigError, match=r"does not say which environment.*state \(3,\), environment_state \(4,\)"):
        take_environment(load_policy(folder), {})
    with pytest.raises(ConfigError, match=r"The toy has no observation 's'.*features="):
        take_environment(load_policy(folder, features=names), {"suite": "toy"})
    narrow = load_policy(folder, features={**names, "observation.state": "agent_pos"})
    with pytest.raises(ContractError, match=r"'agent_pos' is \(2,\)"):
        take_environment(narrow, {"suite": "toy"})
    unbounded = load_policy(folder, features={"observation.state": {"agent_pos": 2, "state": 1},
                                              "observation.environment_state": {"state": 3, "x": 1}})  # fmt: skip
    assert unbounded.spec.action_high == torch.inf
    unbounded.spec.obs.pop("x")
    take_environment(unbounded, {"suite": "toy"})
    assert (unbounded.spec.action_low, unbounded.spec.action_high, unbounded.spec.control_hz) == (-1.0, 1.0, 10.0)


# ---------------------------------------------------------------------------------------------- broken folders


def rewrite(file, **changes):
    """Replaces, or with None removes, tensors or options of a file."""
    read = load_file if file.suffix == ".safetensors" else lambda f: json.loads(f.read_text())
    content = {k.replace(".", "__"): v for k, v in read(file).items()} | changes
    content = {k.replace("__", "."): v for k, v in content.items() if v is not None}
    save_file(content, file) if file.suffix == ".safetensors" else file.write_text(json.dumps(content))


WEIGHTS, STATS = "model.safetensors", "policy_preprocessor_step_3_normalizer_processor.safetensors"
OUT_STATS = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
FINAL = "diffusion__unet__final_conv__1__bias"
BROKEN = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"model.safetensors is missing"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 5000), r"model.safetensors cannot be read"),
    "a bomb's header": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), r"model.safetensors cannot be read"),
    "missing weight": (lambda f: rewrite(f / WEIGHTS, **{FINAL: None}), "has no 'diffusion.unet.final_conv.1.bias'"),
    "extra weight": (lambda f: rewrite(f / WEIGHTS, a__b=torch.zeros(1)), "no place for: 'a.b'"),
    "misshapen": (lambda f: rewrite(f / WEIGHTS, **{FINAL: torch.zeros(3)}), r"is \(3,\), expected \(2,\)"),
    "not finite": (lambda f: rewrite(f / WEIGHTS, **{FINAL: torch.full((2,), torch.nan)}), "must be finite"),
    "integers": (lambda f: rewrite(f / WEIGHTS, **{FINAL: torch.zeros(2).int()}), "must be finite real"),
    "config cut": (lambda f: os.truncate(f / "config.json", 100), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[1]"), "holds no configuration"),
    "another policy": (lambda f: rewrite(f / "config.json", type="act"), "of type 'act'"),
    "unknown option": (lambda f: rewrite(f / "config.json", horizn=8), "'horizn' is not known. Did you mean 'horizon'"),
    "bad horizon": (lambda f: rewrite(f / "config.json", horizon="8"), "horizon='8' must be a whole number"),
    "bad scheduler": (lambda f: rewrite(f / "config.json", noise_scheduler_type="PNDM"), "noise_scheduler_type='PNDM'"),
    "bad clip": (lambda f: rewrite(f / "config.json", clip_sample_range=2.0), "clip_sample_range=2.0"),
    "too many steps": (lambda f: rewrite(f / "config.json", num_inference_steps=1000), "at most num_train_timesteps"),
    "other size": (lambda f: rewrite(f / "config.json", down_dims=[8, 32]), "expected"),
    "no state": (lambda f: rewrite(f / "config.json", input_features={}), "has no observation.state"),
    "no features": (lambda f: rewrite(f / "config.json", output_features=7), "output_features must"),
    "no processors": (lambda f: [x.unlink() for x in f.glob("policy_*.json")], "no normaliser"),
    "half the processors": (lambda f: (f / "policy_postprocessor.json").unlink(), "postprocessor.json is missing"),
    "no statistics": (lambda f: (f / STATS).unlink(), f"{STATS} is missing"),
    "no maximum": (lambda f: rewrite(f / STATS, observation__state__max=None), "has no 'observation.state.max'"),
    "infinite": (lambda f: rewrite(f / OUT_STATS, action__min=torch.full((2,), -torch.inf)), "'action.min'.*finite"),
    "mode": (lambda f: (f / "policy_preprocessor.json").write_text((f / "policy_preprocessor.json").read_text().replace(
        '"MIN_MAX"', '"LOG"')), "unknown normalisation 'LOG'"),
    "step": (lambda f: (f / "policy_preprocessor.json").write_text((f / "policy_preprocessor.json").read_text().replace(
        "to_batch_processor", "delta_actions")), "unknown are .'delta_actions'"),
    "our own file": (lambda f: (f / "deft.json").write_text("{}"), "deft.json is not as Deft wrote it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(folder, name):
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(DataError, match=message):
        load_policy(folder)


def test_the_older_generation(folder, tmp_path):
    new = load_policy(folder)
    obs, noise = watched(new)
    wanted = new.act(obs, noise=noise)
    as_older(folder)
    torch.testing.assert_close(load_policy(folder).act(obs, noise=noise), wanted, rtol=0, atol=5e-6)
    rewrite(folder / WEIGHTS, normalize_inputs__buffer_observation_state__min=torch.full((3,), torch.inf))
    with pytest.raises(DataError, match=r"'normalize_inputs.buffer_observation_state.min'.*finite"):
        load_policy(folder)


def as_older(folder: Path) -> None:
    """The same policy as LeRobot wrote it until 0.3: the statistics among the weights."""
    stats = load_file(folder / STATS)
    weights = load_file(folder / WEIGHTS)
    modes = json.loads((folder / "policy_preprocessor.json").read_text())["steps"][-1]["config"]["norm_map"]
    for name, x in stats.items():
        feature, kind = name.rsplit(".", 1)
        image = feature.startswith("observation.image")
        mode = modes["VISUAL" if image else "ACTION" if feature == "action" else "STATE"]
        if kind in (("mean", "std") if mode == "MEAN_STD" else ("min", "max")):
            parts = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
            for part in parts:
                weights[f"{part}.buffer_{feature.replace('.', '_')}.{kind}"] = x.clone()
    save_file(weights, folder / WEIGHTS)
    for file in folder.glob("policy_*"):
        file.unlink()


# ---------------------------------------------------------------------------------------------- LeRobot itself

PYTHON = Path(os.environ.get("DEFT_PEERS", Path(__file__).parents[2] / ".venv-peers")) / "bin" / "python"
needs_lerobot = pytest.mark.skipif(
    not any(PYTHON.parents[1].glob("lib/python*/site-packages/lerobot")),
    reason=f"LeRobot is not in {PYTHON}: install_lerobot.sh",
)


def judge(*command):
    script = Path(__file__).with_name("lerobot_judge.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PYTHON, script, *command], capture_output=True, text=True, timeout=380, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """{case: folder} that LeRobot wrote."""
    root = tmp_path_factory.mktemp("lerobot")
    judge("make", *(str(x) for name in CASES for x in (name, root / name)))
    return {name: root / name for name in CASES}


def ask(folder: Path, names: dict) -> tuple:
    """Puts observations and noise before LeRobot; (our policy, our observations, our noise)."""
    policy = load_policy(folder)
    features = json.loads((folder / "config.json").read_text())["input_features"]
    stats = statistics({name: feature["shape"] for name, feature in features.items()})
    n, generator, inputs = 1, torch.Generator().manual_seed(5), {}
    for name, values in stats.items():
        key = names[name]
        if values["min"].ndim > 1:
            shape = (n, policy.n_obs_steps, *policy.spec.obs[key].shape)
            inputs[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            draw = torch.rand(n, policy.n_obs_steps, *values["min"].shape, generator=generator)
            inputs[name] = values["min"] + draw * (values["max"] - values["min"])
    noise = torch.randn(n, policy.horizon, policy.action_dim, generator=generator)
    save_file({**inputs, "noise": noise, "seed": torch.tensor(7)}, folder / "io.safetensors")
    if len(policy.noise_shape) == 3:  # the ancestral sampler's further draws, as torch's global generator gives them
        torch.manual_seed(7)
        noise = torch.stack([noise, *(torch.randn_like(noise) for _ in range(policy.noise_shape[0] - 1))], 1)
    return policy, {names[k]: x for k, x in inputs.items()}, noise


@pytest.mark.slow
@needs_lerobot
def test_the_same_noise_gives_lerobots_actions(theirs):
    asked = {name: ask(folder, {k: default_key(k) for k in CASES[name]["inputs"]}) for name, folder in theirs.items()}
    judge("act", *map(str, theirs.values()))
    for name, (policy, obs, noise) in asked.items():
        answers = load_file(theirs[name] / "answers.safetensors")
        ours = policy.act(obs, noise=noise)
        torch.testing.assert_close(ours, answers["action"], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert (answers["normalised"].abs() < 0.999).float().mean() > 0.5, f"{name} says nothing: it is at the limits"
        if "queued" in answers:
            torch.testing.assert_close(ours, answers["queued"], rtol=0, atol=1e-5)


@pytest.mark.slow
@needs_lerobot
def test_the_older_generation_as_lerobot_migrates_it(theirs, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    subprocess.run(["cp", "-r", theirs["image"], old], check=True)
    as_older(old)
    policy, obs, noise = ask(old, {k: default_key(k) for k in CASES["image"]["inputs"]})
    judge("migrate", str(old), str(new))
    (old / "io.safetensors").rename(new / "io.safetensors")
    judge("act", str(new))
    answers = load_file(new / "answers.safetensors")
    torch.testing.assert_close(policy.act(obs, noise=noise), answers["action"], rtol=0, atol=1e-5)


@pytest.mark.slow
@needs_lerobot
def test_lerobot_loads_what_we_write(tmp_path):
    cases = {
        "state": (made(["objects", "hand"]), {"observation.state": "objects", "observation.environment_state": "hand"}),
        "image": (made(["rgb_top", "hand"], policy={**SAMPLER, "prediction": "sample"}),
                  {"observation.state": "hand", "observation.images.top": "rgb_top"}),
    }  # fmt: skip
    asked = {name: ask(write_lerobot(*ours, tmp_path / name), names) for name, (ours, names) in cases.items()}
    judge("act", *(str(tmp_path / name) for name in cases))
    for name, (_, obs, noise) in asked.items():
        policy = cases[name][0][0]
        theirs = load_file(tmp_path / name / "answers.safetensors")["action"]
        bounded = theirs.clamp(policy.spec.action_low, policy.spec.action_high)  # LeRobot does not
        torch.testing.assert_close(policy.act(obs, noise=noise), bounded, rtol=0, atol=1e-5)
