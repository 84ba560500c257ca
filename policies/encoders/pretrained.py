"""Pre-trained image backbones from local files: the hub's folders (DINOv2, SigLIP), torchvision's ResNets (R3M).

What a backbone is rebuilt from without those files, its ``architecture``, goes into the checkpoint's configuration:

    model: the hub's configuration of the vision model, or {"model_type": "torchvision", "blocks": "resnet18"}
    size: (height, width) it sees; mean, std: per channel, of colours in [0, 1]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import ConfigError
from policies.encoders.resnet import BLOCKS, FrozenBatchNorm, ResNet, from_torchvision

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # SigLIP's
OPTION = "encoder.rgb.path"


class Pretrained(nn.Module):
    """Colour images of any size in [-1, 1] -> one vector each.

    Images are resized to the size the weights were trained on, whatever their shape; our random crop stands in for the
    central one of the hub's processors.

    Args:
        network: images of that size -> (n, d).
        architecture: see the module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, architecture: Mapping[str, Any]):
        super().__init__()
        self.network, self.architecture = network, dict(architecture)
        self.size = (int(architecture["size"][0]), int(architecture["size"][1]))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(architecture[name]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            training, _ = network.training, network.eval()
            self.out_channels = network(torch.zeros(1, 3, *self.size)).shape[1]
            network.train(training)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of images in [-1, 1]."""
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", align_corners=False, antialias=True)
        return self.network(((x + 1) / 2 - self.mean) / self.std)


class _Hub(nn.Module):
    """A vision model of ``transformers``: its pooled output, or the mean of its tokens where it does not pool."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token"):  # used in pre-training only
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


def load_pretrained(path: str | None, architecture: Mapping[str, Any] | None) -> Pretrained:
    """A backbone with the weights at ``path``; or, of ``architecture``, with weights that a checkpoint will fill in.

    Args:
        path: a folder in the hub's format, or a file (.pt, .pth, .safetensors) of a torchvision ResNet's weights.
        architecture: see the module; ``path`` is then not read.

    Raises:
        ConfigError: there is nothing at ``path``, or nothing of this kind; no ``transformers`` to load a folder with.
    """
    if architecture is not None:
        model = architecture["model"]
        if model["model_type"] == "torchvision":
            return Pretrained(_resnet(model["blocks"]), architecture)
        hub = _transformers()
        config = hub.AutoConfig.for_model(**model)
        return Pretrained(_Hub(hub.AutoModel.from_config(config)), architecture)
    if path is None:
        raise ConfigError(f"backbone=pretrained needs {OPTION}: a folder in the hub's format, or a ResNet's weights.")
    if Path(path).is_dir():
        return _load_folder(Path(path))
    if Path(path).is_file():
        return _load_resnet(Path(path))
    raise ConfigError(f"{OPTION}={path} does not exist; nothing is downloaded.")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ConfigError("encoder.rgb.backbone=pretrained needs transformers: pip install 'deft[vision]'.") from e
    return transformers


def _load_folder(path: Path) -> Pretrained:
    hub = _transformers()
    level = hub.logging.get_verbosity()
    bars = hub.logging.is_progress_bar_enabled()
    hub.logging.set_verbosity_error()  # it reports at length on the text tower that is left out
    hub.logging.disable_progress_bar()
    try:
        config = hub.AutoConfig.from_pretrained(path, local_files_only=True)
        config = getattr(config, "vision_config", None) or config  # of models with a text tower, SigLIP's and CLIP's
        model, info = hub.AutoModel.from_pretrained(
            path, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ConfigError(f"{OPTION}={path} cannot be loaded: {str(e).splitlines()[0]}") from e
    finally:
        hub.logging.set_verbosity(level)
        if bars:
            hub.logging.enable_progress_bar()
    if info["missing_keys"]:
        raise ConfigError(
            f"{OPTION}={path} lacks weights of a {type(model).__name__}: {', '.join(sorted(info['missing_keys'])[:5])}."
        )
    description = json.loads(config.to_json_string(use_diff=False))
    return Pretrained(_Hub(model), {"model": description, **read_processor(path, description)})


def read_processor(path: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """ "size", "mean" and "std" from preprocessor_config.json (or processor_config.json) of a hub folder.

    Without one: the configuration's image_size, else 224; SigLIP's mean and deviation of 0.5, else ImageNet's.
    """
    processor: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).exists():
            found = json.loads((path / name).read_text())
            processor = found.get("image_processor", found)
    default = HALF if "siglip" in str(model.get("model_type")) else IMAGENET
    size = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    size = size or processor.get("size") or model.get("image_size") or 224
    if isinstance(size, Mapping):
        size = [size[k] for k in ("height", "width")] if "height" in size else size["shortest_edge"]
    if isinstance(size, int):
        size = [size, size]
    mean, std = processor.get("image_mean") or default["mean"], processor.get("image_std") or default["std"]
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    return {"size": list(size), "mean": list(mean), "std": list(std)}


def _resnet(blocks: str) -> nn.Module:
    """With the mean over the map, which is what R3M and classifiers were trained with."""
    body = ResNet(blocks=BLOCKS[blocks], norm=FrozenBatchNorm)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _load_resnet(path: Path) -> Pretrained:
    try:
        weights: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        for wrapping in ("r3m", "state_dict", "model"):
            weights = weights.get(wrapping, weights)
        weights = from_torchvision(weights)
        blocks = "resnet34" if "stages.0.2.conv1.weight" in weights else "resnet18"
        network = _resnet(blocks)
        network[0].load_state_dict(weights)  # type: ignore[index]
    except ValueError as e:
        raise ConfigError(f"The weights in {OPTION}={path} {e}.") from e
    except Exception as e:  # the unpickler's errors are of many kinds
        raise ConfigError(f"{OPTION}={path} cannot be loaded: {str(e).splitlines()[0]}") from e
    return Pretrained(
        network, {"model": {"model_type": "torchvision", "blocks": blocks}, "size": [224, 224], **IMAGENET}
    )
