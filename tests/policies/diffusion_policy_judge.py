"""The answers of policies with robomimic's and torchvision's own encoders: ``diffusion_policy_judge.py FOLDER``.

Run by a Python that has both; writes NAME.ckpt, and observations, noise and actions into NAME.pt. robomimic's encoder
is made as Diffusion Policy's hybrid policies make it: BC-RNN's for images, its crop and its norms replaced.
"""

import sys
from pathlib import Path

import torch

if not hasattr(torch.ops.torchvision, "nms"):  # its wheel is for another torch; no kernel of its own is needed
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dill
import robomimic.models.base_nets
import robomimic.scripts.generate_paper_configs as paper
import robomimic.utils.obs_utils
import torchvision
from robomimic.algo import algo_factory
from robomimic.config import config_factory
from torch import nn
from torchvision import transforms

from tests.policies.diffusion_policy_encoders import MultiImage, width
from tests.policies.diffusion_policy_parts import IMAGE_CASES, IMAGENET, Published, ours, payload, watched


class Central(robomimic.models.base_nets.Randomizer):
    """Diffusion Policy's crop in evaluation."""

    def __init__(self, size):
        super().__init__()
        self.crop = transforms.CenterCrop(size)

    def output_shape_in(self, input_shape=None):
        return [3, *self.crop.size]

    def output_shape_out(self, input_shape=None):
        return list(input_shape)

    def forward_in(self, x):
        return self.crop(x)

    def forward_out(self, x):
        return x


def grouped(module):
    """Every BatchNorm a GroupNorm of 16 channels a group; a module that has two names is replaced under both."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(child.num_features // 16, child.num_features))
    return module


def visual_core(policy):
    fields = policy["shape_meta"]["obs"]
    kinds = {kind: [k for k, f in fields.items() if f.get("type", "low_dim") == kind] for kind in ("low_dim", "rgb")}
    config = paper.modify_config_for_default_image_exp(config_factory(algo_name="bc"))
    kwargs = {"task_name": "square", "dataset_type": "ph", "hdf5_type": "image"}
    config = paper.modify_config_for_dataset(config=config, base_dataset_dir="/tmp/null", filter_key=None, **kwargs)
    config = paper.modify_bc_rnn_config_for_dataset(config=config, **kwargs)
    with config.unlocked():
        config.observation.modalities.obs = {**kinds, "depth": [], "scan": []}
        for modality in config.observation.encoder.values():
            if modality.obs_randomizer_class == "CropRandomizer":
                if policy["crop_shape"] is None:
                    modality["obs_randomizer_class"] = None
                else:
                    height, wide = policy["crop_shape"]
                    modality.obs_randomizer_kwargs.crop_height = height
                    modality.obs_randomizer_kwargs.crop_width = wide
    robomimic.utils.obs_utils.initialize_obs_utils_with_config(config)
    made = algo_factory(
        algo_name=config.algo_name,
        config=config,
        obs_key_shapes={name: list(field["shape"]) for name, field in fields.items()},
        ac_dim=policy["shape_meta"]["action"]["shape"][0],
        device="cpu",
    )
    encoder = made.nets["policy"].nets["encoder"].nets["obs"]
    if policy["crop_shape"] is not None:
        for name in kinds["rgb"]:
            encoder.obs_randomizers[name] = Central(policy["crop_shape"])
    return grouped(encoder) if policy["obs_encoder_group_norm"] else encoder


def resnet(name, group):
    made = getattr(torchvision.models, name)(weights=None)
    made.fc = nn.Identity()
    return grouped(made) if group else made


def transform(x, options):
    steps = []
    if options["resize_shape"]:
        steps.append(transforms.Resize(tuple(options["resize_shape"]), antialias=False))
    if options["crop_shape"]:
        steps.append(transforms.CenterCrop(tuple(options["crop_shape"])))
    if options["imagenet_norm"]:
        steps.append(transforms.Normalize(**IMAGENET))
    return nn.Sequential(*steps)(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case, policy in IMAGE_CASES.items():
        torch.manual_seed(0)
        multi = "obs_encoder" in policy
        encoder = MultiImage(policy["obs_encoder"], resnet, transform) if multi else visual_core(policy)
        module = Published(policy, encoder, width(policy)).eval()
        folder = Path(sys.argv[1])
        torch.save(payload(policy, module), folder / f"{case}.ckpt", pickle_module=dill)
        obs, noise = watched(policy)
        action, chunk = module.act(obs, noise, seed=3)
        assert (chunk.abs() < 0.999).float().mean() > 0.3, f"{case} says nothing: it is at the limits"
        asked = {"obs": obs, "noise": ours(policy, noise, seed=3), "action": action}
        torch.save(asked, folder / f"{case}.pt")
