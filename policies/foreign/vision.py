"""Weights of Diffusion Policy's image encoders: robomimic's VisualCore, and torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from data.errors import DataError
from policies.encoders.image import ImageEncoder
from policies.encoders.resnet import numbered_name, torchvision_name
from policies.foreign.diffusion_policy_config import DiffusionPolicyConfig
from policies.foreign.layout import Feature
from policies.foreign.tensors import Tensors, side_by_side

ROBOMIMIC, TORCHVISION = "obs_encoder.obs_nets.", "obs_encoder.key_model_map."
SHARED = "rgb"  # the key of an encoder that all images share
POOL = "1"  # the layer of a VisualCore; 0 is the backbone, 2 flattens, 3 projects


def read_encoders(
    source: Tensors, config: DiffusionPolicyConfig, encoder: ImageEncoder, observed: Sequence[Feature]
) -> dict[str, Tensor]:
    """Our weights, by their names in the policy.

    Args:
        source: their weights; taken.
        config: of the policy.
        encoder: of the right shapes, one for all images; may lie on the meta device.
        observed: the observations.
    """
    # A VisualCore knows its layers by a second name, and the grid follows from the image's size.
    again = (".backbone.", ".pool.")
    source.drop(lambda name: name.startswith(ROBOMIMIC) and f".{name.split('.')[3]}." in again)
    source.drop(lambda name: name.startswith((ROBOMIMIC, TORCHVISION)) and name.endswith("num_batches_tracked"))
    source.drop(lambda name: name.startswith(ROBOMIMIC) and name.endswith((".nets.1.pos_x", ".nets.1.pos_y")))
    cameras = {f.name: next(iter(f.keys)) for f in observed if len(f.shape) > 1}
    out: dict[str, Tensor] = {}
    for name in [SHARED] if config.shared else cameras:
        if config.kind.encoder == "robomimic":
            weights = _robomimic(source, f"{ROBOMIMIC}{name}.nets.", encoder)
        else:
            weights = {
                ours: source.take(f"{TORCHVISION}{name}.{torchvision_name(ours.removeprefix('backbone.'))}", x.shape)
                for ours, x in encoder.state_dict().items()
            }
        for camera in cameras.values() if config.shared else [cameras[name]]:
            out |= {f"encoder.encoders.{camera}.{ours}": x for ours, x in weights.items()}
    return out


def _robomimic(source: Tensors, prefix: str, encoder: ImageEncoder) -> dict[str, Tensor]:
    out = {}
    for ours, x in encoder.state_dict().items():
        module, rest = ours.split(".", 1)
        known = {"pool": f"{POOL}.nets.{rest.split('.')[-1]}", "projection": f"3.{rest}"}
        value = source.take(prefix + (known.get(module) or f"0.nets.{numbered_name(rest)}"), x.shape)
        out[ours] = side_by_side(value) if ours == "projection.weight" else value
    name = f"{prefix}{POOL}.temperature"
    if float(source.take(name, (1,))) != 1:
        raise DataError(f"{source.file}: '{name}' must be 1: nothing else has a counterpart here.")
    return out
