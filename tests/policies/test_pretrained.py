"""Pre-trained backbones: loaded from local files, frozen, and carried by checkpoints that need those files no more."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algos.bc import BC
from algos.features import LearnedFeatures
from data.errors import ConfigError
from policies.checkpoint import load_policy, read_config, save_policy
from policies.encoders.image import ImageEncoder
from policies.encoders.pretrained import load_pretrained, read_processor
from policies.encoders.resnet import ResNet
from policies.rng import BatchRng
from tests.policies.conftest import ENCODER, config, make, make_batch, make_store

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dinov2(hub, tmp_path_factory):
    """A tiny random DINOv2 as a hub folder, and the model."""
    torch.manual_seed(0)
    model = hub.Dinov2Model(hub.Dinov2Config(**TINY, mlp_ratio=2)).eval()
    path = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(path)
    processor = {"crop_size": {"height": 42, "width": 28}, "size": {"shortest_edge": 50}, "do_center_crop": True}
    processor |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path, model


@pytest.fixture(scope="module")
def siglip(hub, tmp_path_factory):
    """A tiny random SigLIP, both towers."""
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 10, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = hub.SiglipModel(hub.SiglipConfig(vision_config={**TINY, "intermediate_size": 32}, text_config=text)).eval()
    path = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(path)
    return path, model


def rgb(path, **more):
    return {**ENCODER, "rgb": {"backbone": "pretrained", "path": str(path), "out_dim": 8, **more}}


def test_dinov2_sees_what_its_processor_would_show(dinov2):
    path, model = dinov2
    encoder = ImageEncoder(backbone="pretrained", path=str(path), crop_ratio=1.0).eval()
    x = torch.randint(256, (2, 1, 60, 80, 3), dtype=torch.uint8)
    image = F.interpolate(x[:, 0].permute(0, 3, 1, 2) / 255, (42, 28), mode="bicubic", antialias=True)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        expected = model((image - mean) / std).pooler_output
        torch.testing.assert_close(encoder(x)[:, 0], encoder.projection(expected), atol=1e-4, rtol=1e-4)


def test_siglip_s_vision_tower_alone_is_loaded(siglip):
    path, model = siglip
    backbone = load_pretrained(str(path), None)
    assert backbone.size == (28, 28)
    x = 2 * torch.rand(2, 3, 28, 28) - 1  # mean and deviation 0.5, without a processor's file
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(x), model.vision_model(x).pooler_output)
    assert not any("text" in name for name, _ in backbone.named_parameters())


def test_processors_and_their_absence(tmp_path):
    assert read_processor(tmp_path, {"model_type": "vit"})["size"] == [224, 224]
    assert read_processor(tmp_path, {"model_type": "siglip_vision_model", "image_size": 384}) == {
        "size": [384, 384], "mean": [0.5] * 3, "std": [0.5] * 3
    }  # fmt: skip
    nested = {"image_processor": {"size": {"shortest_edge": 96}, "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_processor(tmp_path, {}) == {"size": [96, 96], "mean": [0.0] * 3, "std": [1.0] * 3}


# ---------------------------------------------------------------------- torchvision's layout


class _TorchvisionBlock(nn.Module):
    """The published layout of names, written from its description."""

    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.downsample = None
        if a != b:
            self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class _TorchvisionResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        widths = [64, 64, 128, 256, 512]
        for i, n in enumerate(blocks):
            a, b = widths[i], widths[i + 1]
            layers = [_TorchvisionBlock(b if j else a, b, 2 if i and not j else 1) for j in range(n)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(4):
            h = getattr(self, f"layer{i + 1}")(h)
        return h.mean((2, 3))


@pytest.mark.parametrize(("blocks", "r3m"), [((2, 2, 2, 2), True), ((3, 4, 6, 3), False)])
def test_resnets_in_torchvision_s_layout(tmp_path, blocks, r3m):
    torch.manual_seed(0)
    published = _TorchvisionResNet(blocks)
    for norm in published.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    published.eval()
    state = published.state_dict()
    if r3m:  # what R3M's files look like
        state = {f"module.convnet.{k}": v for k, v in state.items()} | {"module.lang_rew.weight": torch.zeros(2)}
        state = {"r3m": state}
    torch.save(state, tmp_path / "weights.pt")
    backbone = load_pretrained(str(tmp_path / "weights.pt"), None)
    assert backbone.size == (224, 224)
    backbone.size = (64, 64)
    x = 2 * torch.rand(1, 3, 64, 64) - 1
    with torch.no_grad():
        expected = published(((x + 1) / 2 - IMAGENET[0]) / IMAGENET[1])
        torch.testing.assert_close(backbone.train()(x), expected, atol=1e-4, rtol=1e-4)  # frozen BatchNorm in any mode
    assert backbone.architecture["model"]["blocks"] == ("resnet18" if r3m else "resnet34")
    assert not [n for n, _ in backbone.named_parameters() if "norm" in n]


def test_what_cannot_be_loaded_is_named(tmp_path, dinov2):
    path, _ = dinov2
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_pretrained(str(tmp_path / "nowhere"), None)
    with pytest.raises(ConfigError, match=r"needs encoder\.rgb\.path"):
        load_pretrained(None, None)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"other\.pt are not a ResNet's in torchvision's layout"):
        load_pretrained(str(tmp_path / "other.pt"), None)
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(ConfigError, match=r"text\.pt cannot be loaded"):
        load_pretrained(str(tmp_path / "text.pt"), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty cannot be loaded"):
        load_pretrained(str(tmp_path / "empty"), None)
    shutil.copytree(path, tmp_path / "more")
    deeper = json.loads((path / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "more" / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ConfigError, match=r"more lacks weights of a Dinov2Model: .*layers?\.1\."):
        load_pretrained(str(tmp_path / "more"), None)
    with pytest.raises(ValueError, match="sees colour only"):
        ImageEncoder(4, backbone="pretrained", path=str(path))


# ---------------------------------------------------------------------- in a policy


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("demo") / "d.zarr", ("rgb_left", "rgb_right"))


def test_a_frozen_backbone_is_trained_kept_and_averaged_by_nobody(cameras, dinov2):
    policy = make(cameras, encoder=rgb(dinov2[0]))
    left, right = policy.encoder.encoders["rgb_left"], policy.encoder.encoders["rgb_right"]
    assert left.backbone is right.backbone
    assert left.projection is not right.projection
    before = {k: v.clone() for k, v in left.backbone.state_dict().items()}
    algo = BC(policy, train_steps=5, lr=1e-2, weight_decay=0.5, lr_warmup_steps=1)
    batch = make_batch(cameras, 4)
    for _ in range(3):
        algo.update(batch)
    assert all(torch.equal(v, before[k]) for k, v in left.backbone.state_dict().items())
    frozen = {id(p) for p in left.backbone.parameters()}
    optimised = {id(p) for group in algo.optimiser.param_groups for p in group["params"]}
    assert not frozen & optimised
    assert optimised == {id(p) for p in policy.parameters()} - frozen
    assert frozen <= {id(p) for p in algo.policy.parameters()}  # one copy for both
    averaged = algo.policy.encoder.encoders["rgb_left"]
    assert averaged.projection.weight is not left.projection.weight
    assert left.training
    assert not left.backbone.training
    obs = {k: v.clone() for k, v in batch.obs.items()}
    out = policy.encode(obs, BatchRng(0))
    assert out.grad_fn is not None


def test_a_fine_tuned_backbone_moves(cameras, dinov2):
    policy = make(cameras, encoder=rgb(dinov2[0], frozen=False, shared=True))
    backbone = policy.encoder.encoders["rgb_left"].backbone
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    BC(policy, train_steps=5, lr=1e-2, lr_warmup_steps=1).update(make_batch(cameras, 4))
    still = [k for k, v in backbone.state_dict().items() if torch.equal(v, before[k])]
    assert still == ["network.model.embeddings.mask_token"]  # used in pre-training only
    assert backbone.training


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpoints_need_the_folder_no_more(cameras, dinov2, tmp_path, frozen):
    folder = tmp_path / "weights"
    shutil.copytree(dinov2[0], folder)
    policy = make(cameras, encoder=rgb(folder, frozen=frozen, shared=not frozen)).eval()
    save_policy(tmp_path / "c", policy, config("flow", "mlp", encoder=rgb(folder, frozen=frozen, shared=not frozen)))
    shutil.rmtree(folder)
    loaded = load_policy(tmp_path / "c")
    obs, noise = make_batch(cameras, 2).obs, policy.draw_noise(2)
    assert torch.equal(policy.act(obs, noise=noise), loaded.act(obs, noise=noise))
    size = (tmp_path / "c" / "model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for p in policy.parameters()) + 40_000  # once, and not once a camera
    assert read_config(tmp_path / "c")["shared"]
    save_policy(tmp_path / "again", loaded, read_config(tmp_path / "c")["config"])
    assert torch.equal(load_policy(tmp_path / "again").act(obs, noise=noise), loaded.act(obs, noise=noise))
    trained = [n for n, p in loaded.named_parameters() if p.requires_grad and ".backbone." in n]
    assert bool(trained) == (not frozen)


def test_critics_that_train_an_encoder_leave_what_is_frozen(cameras, dinov2):
    policy = make(cameras, encoder=rgb(dinov2[0])).requires_grad_(False)
    features = LearnedFeatures(policy, shift=2)
    own, base = features.encoder.encoders["rgb_left"], policy.encoder.encoders["rgb_left"]
    assert own.projection.weight is not base.projection.weight
    assert own.projection.weight.requires_grad
    for a, b in zip(own.backbone.parameters(), base.backbone.parameters(), strict=True):
        assert a is b
        assert not a.requires_grad
    features.augmented(make_batch(cameras, 2).obs, None).sum().backward()
    assert own.projection.weight.grad is not None


def test_group_norm_resnets_keep_their_names():
    """Checkpoints of before are still read."""
    names = set(ResNet(width=8).state_dict())
    assert {"stem.0.weight", "stem.1.bias", "stages.1.0.skip.0.weight", "stages.3.1.norm2.weight"} <= names
