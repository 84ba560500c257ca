"""LeRobot's own answers, run by a Python that has it: ``make CASE FOLDER``, ``act FOLDER`` or ``migrate FROM TO``.

"make" writes a policy with random weights and statistics as LeRobot's train script does; "act" loads a folder with
``from_pretrained`` and answers the questions in io.safetensors beside it: the same observations and noise, in
environment units, into answers.safetensors.
"""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "benchmarks" / "peers"), str(REPO)]

# ruff: noqa: E402
import huggingface_hub
import lerobot_diffusion  # noqa: F401  first: it lets torchvision's CUDA wheel be imported
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file, save_file

from tests.policies.lerobot_cases import CASES, statistics, weights

torch.set_num_threads(1)
IMAGES = "observation.images"


def make(name: str, folder: Path) -> None:
    case = CASES[name]
    kinds = {"observation.state": "STATE", "observation.environment_state": "ENV"}
    inputs = {k: PolicyFeature(FeatureType(kinds.get(k, "VISUAL")), shape) for k, shape in case["inputs"].items()}
    config = DiffusionConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, case["action"])},
        normalization_mapping={k: NormalizationMode(v) for k, v in case["normalisation"].items()},
        device="cpu",
        push_to_hub=False,
        **case["options"],
    )
    policy = DiffusionPolicy(config)
    policy.load_state_dict(weights(policy.state_dict()))
    stats = statistics({**case["inputs"], "action": case["action"]})
    if steps := case.get("train"):
        train(policy, make_pre_post_processors(config, dataset_stats=stats)[0], stats, steps)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)


def train(policy, preprocess, stats, steps: int) -> None:
    """On smooth chunks that follow from the state."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    policy.train()
    for _ in range(steps):
        batch = {
            k: stats[k]["min"] + torch.rand(64, 2, *v["min"].shape) * (v["max"] - v["min"]) for k, v in stats.items()
        }
        ramp = torch.linspace(0, 1, policy.config.horizon)[None, :, None]
        low, high = stats["action"]["min"], stats["action"]["max"]
        wave = (3 * batch["observation.environment_state"][:, -1:, :1] + 4 * ramp).sin() / 2 + 0.5
        batch["action"] = low + (0.2 + 0.6 * wave) * (high - low)
        batch["action_is_pad"] = torch.zeros(64, policy.config.horizon, dtype=torch.bool)
        loss = policy(preprocess(batch))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()


@torch.no_grad()
def act(folder: Path) -> None:
    asked = load_file(folder / "io.safetensors")
    policy = DiffusionPolicy.from_pretrained(folder, strict=True).eval()
    preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    obs = {k: x.float().movedim(-1, -3) / 255 if x.dtype == torch.uint8 else x for k, x in asked.items() if "." in k}
    batch = preprocess(obs)
    cameras = list(policy.config.image_features)
    if cameras:
        batch[IMAGES] = torch.stack([batch[k] for k in cameras], dim=-4)
    # All it draws after the first noise is for the ancestral sampler, from the global generator.
    torch.manual_seed(int(asked["seed"]))
    chunk = policy.diffusion.generate_actions(batch, noise=asked["noise"])
    answers = {"action": postprocess(chunk), "normalised": chunk}
    # And the way a robot goes: frame by frame, through the queues.
    if len(asked["noise"]) == 1 and policy.config.noise_scheduler_type == "DDIM":
        policy.reset()
        n_obs_steps = policy.config.n_obs_steps
        for t in range(n_obs_steps):
            policy._queues["action"].clear()
            frame = preprocess({k: x[0, t] for k, x in obs.items()})
            first = postprocess(policy.select_action(frame, noise=asked["noise"]))
        rest = [postprocess(policy.select_action(frame)) for _ in range(policy.config.n_action_steps - 1)]
        answers["queued"] = torch.stack([first, *rest], 1)
    save_file({k: x.contiguous() for k, x in answers.items()}, folder / "answers.safetensors")


def migrate(source: Path, target: Path) -> None:
    """LeRobot's own way from its older generation to the newer."""
    from lerobot.processor.migrate_policy_normalization import main

    huggingface_hub.RepoCard.validate = lambda *_, **__: None  # which would ask the hub
    sys.argv = ["migrate", "--pretrained-path", str(source), "--output-dir", str(target)]
    main()


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        for name, folder in zip(arguments[::2], arguments[1::2], strict=True):
            make(name, Path(folder))
    elif command == "act":
        for folder in arguments:
            act(Path(folder))
    else:
        migrate(*map(Path, arguments))
