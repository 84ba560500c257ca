"""Diffusion Policy's policies written down once more, by the names of their weights and with torch's own layers.

The original package does not install beside Deft. What is here follows its published layout, and samples with
diffusers' schedulers, as the original does. Encoders of images are put in from outside, see diffusion_policy_judge.py.
"""

import math
import pickle
from itertools import pairwise

import diffusers
import torch
from omegaconf import OmegaConf
from torch import nn

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Conv(nn.Module):
    def __init__(self, a, b, k, n_groups):
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(a, b, k, padding=k // 2), nn.GroupNorm(n_groups, b), nn.Mish())


class Residual(nn.Module):
    def __init__(self, a, b, cond, k, groups, scale):
        super().__init__()
        self.blocks = nn.ModuleList([Conv(a, b, k, groups), Conv(b, b, k, groups)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * b if scale else b))
        self.residual_conv = nn.Conv1d(a, b, 1) if a != b else nn.Identity()
        self.scale = scale

    def forward(self, x, cond):
        h, film = self.blocks[0].block(x), self.cond_encoder(cond)[..., None]
        if self.scale:
            by, film = film.chunk(2, 1)
            h = by * h
        return self.blocks[1].block(h + film) + self.residual_conv(x)


class Sampler(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv


def sinusoid(k, dim):
    angle = k * torch.exp(torch.arange(dim // 2) * (-math.log(10_000) / (dim // 2 - 1)))
    return torch.cat([angle.sin(), angle.cos()])


class Unet(nn.Module):
    """ConditionalUnet1D with a global condition."""

    def __init__(self, c):
        super().__init__()
        dims, d = [c["input_dim"], *c["down_dims"]], c["diffusion_step_embed_dim"]
        self.diffusion_step_encoder = nn.Sequential(nn.Identity(), nn.Linear(d, 4 * d), nn.Mish(), nn.Linear(4 * d, d))
        self.dim = d
        rest = (d + c["global_cond_dim"], c["kernel_size"], c["n_groups"], c["cond_predict_scale"])
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        pairs = list(pairwise(dims))
        for i, (a, b) in enumerate(pairs):
            down = Sampler(nn.Conv1d(b, b, 3, 2, 1)) if i < len(pairs) - 1 else nn.Identity()
            self.down_modules.append(nn.ModuleList([Residual(a, b, *rest), Residual(b, b, *rest), down]))
        self.mid_modules = nn.ModuleList(Residual(dims[-1], dims[-1], *rest) for _ in range(2))
        for a, b in reversed(pairs[1:]):
            up = Sampler(nn.ConvTranspose1d(a, a, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([Residual(2 * b, a, *rest), Residual(a, a, *rest), up]))
        last = Conv(dims[1], dims[1], c["kernel_size"], 8)
        self.final_conv = nn.Sequential(last, nn.Conv1d(dims[1], dims[0], 1))

    def forward(self, x, k, cond):
        time, cond = self.diffusion_step_encoder(sinusoid(k, self.dim)), cond.flatten(1)
        cond, x, skips = torch.cat([time.expand(len(x), -1), cond], 1), x.movedim(1, 2), []
        for one, two, down in self.down_modules:
            x = two(one(x, cond), cond)
            skips.append(x)
            x = down.conv(x) if isinstance(down, Sampler) else x
        for block in self.mid_modules:
            x = block(x, cond)
        for one, two, up in self.up_modules:
            x = up.conv(two(one(torch.cat([x, skips.pop()], 1), cond), cond))
        return self.final_conv[1](self.final_conv[0].block(x)).movedim(1, 2)


class TransformerForDiffusion(nn.Module):
    """With time and observation as condition."""

    def __init__(self, c):
        super().__init__()
        width, h, n_tokens = c["n_emb"], c["horizon"], 1 + c["n_obs_steps"]
        layer = {
            "d_model": width, "nhead": c["n_head"], "dim_feedforward": 4 * width, "dropout": c["p_drop_attn"],
            "activation": "gelu", "batch_first": True, "norm_first": True,
        }  # fmt: skip
        self.input_emb, self.cond_obs_emb = nn.Linear(c["input_dim"], width), nn.Linear(c["cond_dim"], width)
        self.pos_emb, self.cond_pos_emb = (nn.Parameter(torch.randn(1, n, width)) for n in (h, n_tokens))
        self.encoder: nn.Module = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        if c["n_cond_layers"]:
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**layer), c["n_cond_layers"], enable_nested_tensor=False
            )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), c["n_layer"])
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, c["input_dim"])
        self._dummy_variable = nn.Parameter(torch.empty(0))
        self.mask = self.memory_mask = None
        if c["causal_attn"]:
            step, token = torch.arange(h)[:, None], torch.arange(n_tokens)[None]
            del self.mask, self.memory_mask
            for name, hidden in (("mask", torch.arange(h)[None] > step), ("memory_mask", step < token - 1)):
                self.register_buffer(name, torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf))

    def forward(self, x, k, cond):
        time = sinusoid(k, self.pos_emb.shape[-1]).expand(len(x), 1, -1)
        memory = self.encoder(torch.cat([time, self.cond_obs_emb(cond)], 1) + self.cond_pos_emb)
        x = self.input_emb(x) + self.pos_emb
        return self.head(self.ln_f(self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)))


class Published(nn.Module):
    """A policy by its configuration.

    Args:
        policy: cfg.policy, plain.
        encoder: obs_encoder of image policies: {name: (N, *shape)} -> (N, C).
        width: C.
    """

    def __init__(self, policy, encoder=None, width=0):
        super().__init__()
        self.cfg, self.images = policy, {}
        if encoder is None:
            sizes = {"obs": (policy["obs_dim"],), "action": (policy["action_dim"],)}
            made = policy["model"]
        else:
            self.obs_encoder = encoder
            meta = policy["shape_meta"]
            self.images = {k for k, field in meta["obs"].items() if field.get("type") == "rgb"}
            sizes = {k: (1,) if k in self.images else field["shape"] for k, field in meta["obs"].items()}
            sizes["action"] = meta["action"]["shape"]
            made = {**policy, "input_dim": sizes["action"][0], "cond_dim": width}
            made["global_cond_dim"] = policy["n_obs_steps"] * width
        self.model = TransformerForDiffusion(made) if "n_emb" in made else Unet(made)
        for key, size in sizes.items():
            image = key in self.images
            entries = {
                "scale": torch.full(size, 2.0) if image else 0.5 + torch.rand(size),
                "offset": torch.full(size, -1.0) if image else torch.randn(size),
                "input_stats.min": torch.zeros(size),
            }
            for name, x in entries.items():
                self._put(f"normalizer.params_dict.{key}.{name}", x)
        self._put("mask_generator._dummy_variable", torch.empty(0))
        shaken(self)

    def _put(self, name, x):
        """A parameter by its whole name."""
        *path, last = name.split(".")
        module = self
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(x, requires_grad=False))

    def _map(self, key):
        of_key = getattr(self.normalizer.params_dict, key)
        return of_key.scale, of_key.offset

    @torch.no_grad()
    def act(self, obs, noise, seed=0):
        """Executed actions, and the normalised chunk, for the first noise; the rest is drawn after ``seed``."""
        seen = {}
        for key, x in obs.items():
            scale, offset = self._map(key)
            x = x.movedim(-1, -3) / 255 if key in self.images else x
            seen[key] = x * scale + offset
        cond = seen["obs"] if not hasattr(self, "obs_encoder") else None
        if cond is None:
            first = next(iter(seen.values()))
            features = self.obs_encoder({k: x.flatten(0, 1) for k, x in seen.items()})
            cond = features.unflatten(0, first.shape[:2])
        options = dict(self.cfg["noise_scheduler"])
        scheduler = getattr(diffusers, options.pop("_target_").rsplit(".", 1)[-1])(**options)
        scheduler.set_timesteps(self.cfg["num_inference_steps"])
        torch.manual_seed(seed)
        z = noise
        for k in scheduler.timesteps:
            z = scheduler.step(self.model(z, k, cond), k, z).prev_sample
        scale, offset = self._map("action")
        first = self.cfg["n_obs_steps"] - 1
        return ((z - offset) / scale)[:, first : first + self.cfg["n_action_steps"]], z


@torch.no_grad()
def shaken(module):
    """Weights so large that nothing is without effect; the normaliser stays."""
    for name, x in module.named_parameters():
        if name.startswith("normalizer") or not x.numel():
            continue
        if x.ndim < 2:
            x.add_(0.1 * torch.randn_like(x))
        else:
            x.normal_(std=0.3 if "pos_emb" in name else x[0].numel() ** -0.5)
    for name, x in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            x.add_(0.3 * torch.rand_like(x))


def watched(policy, n=2):
    """Observations and the first noise; one of {name: (n, To, *shape)}, pictures as uint8 (H, W, 3)."""
    to = policy["n_obs_steps"]
    if "shape_meta" not in policy:
        return {"obs": torch.randn(n, to, policy["obs_dim"])}, torch.randn(n, policy["horizon"], policy["action_dim"])
    obs = {}
    for name, field in policy["shape_meta"]["obs"].items():
        c, *rest = field["shape"]
        rgb = field.get("type") == "rgb"
        obs[name] = torch.randint(0, 256, (n, to, *rest, c), dtype=torch.uint8) if rgb else torch.randn(n, to, c)
    return obs, torch.randn(n, policy["horizon"], policy["shape_meta"]["action"]["shape"][0])


def ours(policy, noise, seed=0):
    """The noise as our sampler takes it: for DDPM with what the scheduler draws after ``seed``."""
    if "DDPM" not in policy["noise_scheduler"]["_target_"]:
        return noise
    torch.manual_seed(seed)
    return torch.stack([noise, *(torch.randn_like(noise) for _ in range(policy["num_inference_steps"] - 1))], 1)


def payload(policy, module):
    """What a workspace saves."""
    states = {"model": module.state_dict(), "ema_model": module.state_dict(), "optimizer": {"state": {}}}
    cfg = OmegaConf.create({"policy": policy, "training": {"use_ema": True, "device": "cuda:0"}})
    return {"cfg": cfg, "state_dicts": states, "pickles": {"epoch": pickle.dumps(5)}}


SMALL_UNET = {
    "diffusion_step_embed_dim": 16, "down_dims": [8, 16], "kernel_size": 5, "n_groups": 4, "cond_predict_scale": True,
}  # fmt: skip
SMALL_TRANSFORMER = {
    "n_layer": 2, "n_head": 2, "n_emb": 16, "p_drop_emb": 0.1, "p_drop_attn": 0.3, "n_cond_layers": 0,
    "causal_attn": True, "time_as_cond": True,
}  # fmt: skip
STEPS = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 3}
DDPM = {
    "noise_scheduler": {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": 20,
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small",
        "clip_sample": True, "prediction_type": "epsilon",
    },
    "num_inference_steps": 20,
}  # fmt: skip
DDIM = {
    "noise_scheduler": {
        "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", "num_train_timesteps": 20,
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True,
        "set_alpha_to_one": True, "steps_offset": 0, "prediction_type": "sample",
    },
    "num_inference_steps": 10,
}  # fmt: skip
META = {
    "obs": {
        "wrist": {"shape": [3, 50, 44], "type": "rgb"},
        "pos": {"shape": [3], "type": "low_dim"},
        "front": {"shape": [3, 48, 57], "type": "rgb"},
        "angle": {"shape": [2]},
    },
    "action": {"shape": [3]},
}
ONE = {"obs": {"pos": {"shape": [3]}, "front": {"shape": [3, 48, 57], "type": "rgb"}}, "action": {"shape": [3]}}
MODULE = "diffusion_policy.policy.x."


def hybrid(network, options, **more):
    """cfg.policy of the kinds with robomimic's encoder."""
    unet = network == "unet"
    name = "DiffusionUnetHybridImagePolicy" if unet else "DiffusionTransformerHybridImagePolicy"
    how = {"obs_as_global_cond": True} if unet else {"obs_as_cond": True}
    return {
        "_target_": MODULE + name, "shape_meta": META, **STEPS, **options, **how, "crop_shape": [41, 40],
        "obs_encoder_group_norm": True, "eval_fixed_crop": True, **(SMALL_UNET if unet else SMALL_TRANSFORMER), **more,
    }  # fmt: skip


def multi_image(options, meta=META, model="resnet18", **more):
    """cfg.policy of the kind with torchvision's ResNets."""
    encoder = {
        "_target_": "diffusion_policy.model.vision.multi_image_obs_encoder.MultiImageObsEncoder", "shape_meta": meta,
        "rgb_model": {"_target_": "x.model_getter.get_resnet", "name": model, "weights": None}, "resize_shape": None,
        "crop_shape": None, "random_crop": True, "use_group_norm": True, "share_rgb_model": False,
        "imagenet_norm": False, **more,
    }  # fmt: skip
    return {
        "_target_": MODULE + "DiffusionUnetImagePolicy", "shape_meta": meta, **STEPS, **options,
        "obs_as_global_cond": True, "obs_encoder": encoder, **SMALL_UNET,
    }  # fmt: skip


def transformer(options, **more):
    """cfg.policy of the transformer on vectors."""
    model = {
        "_target_": "x.TransformerForDiffusion", "input_dim": 2, "output_dim": 2, "cond_dim": 5, "horizon": 8,
        "n_obs_steps": 2, "obs_as_cond": True, **SMALL_TRANSFORMER, **more,
    }  # fmt: skip
    return {
        "_target_": MODULE + "DiffusionTransformerLowdimPolicy", "model": model, **STEPS, **options, "obs_dim": 5,
        "action_dim": 2, "obs_as_cond": True, "pred_action_steps_only": False,
    }  # fmt: skip


SEVERAL = {"wrist": {"shape": [3, 48, 57], "type": "rgb"}, **ONE["obs"]}  # of one size, and not in their order
IMAGE_CASES = {
    "hybrid": hybrid("unet", DDIM),
    "hybrid_batchnorm": hybrid("unet", DDPM, shape_meta=ONE, crop_shape=None, obs_encoder_group_norm=False),
    "hybrid_transformer": hybrid("transformer", DDIM, shape_meta=ONE, n_cond_layers=1),
    "image": multi_image(DDIM, ONE, resize_shape=[40, 46], crop_shape=[37, 40], imagenet_norm=True),
    "image_shared": multi_image(
        DDPM, {"obs": SEVERAL, "action": {"shape": [3]}}, share_rgb_model=True, crop_shape=[41, 40]
    ),
    "image_several": multi_image(DDIM, model="resnet34", resize_shape=[72, 64], use_group_norm=False),
}
