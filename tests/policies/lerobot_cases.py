"""Policies of LeRobot's that the tests put to it and to us; read by both sides' Python."""

import torch

STATE, ENV_STATE = "observation.state", "observation.environment_state"
TOP, WRIST = "observation.images.top", "observation.images.wrist_cam"
MINMAX = {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX", "VISUAL": "MEAN_STD"}
SMALL = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "horizon": 8, "n_action_steps": 4}
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
VECTORS = {STATE: (3,), ENV_STATE: (4,)}


def _case(inputs, options, action=3, **more):
    return {"inputs": inputs, "action": (action,), "normalisation": MINMAX, "options": {**SMALL, **options}, **more}


CASES = {
    "env_state": _case(VECTORS, DDIM),
    "trained": _case(VECTORS, DDIM, train=150),
    "trained_ddpm": _case(VECTORS, {"noise_scheduler_type": "DDPM"}, train=150),
    "ddpm_sample": _case(
        VECTORS,
        {
            "prediction_type": "sample",
            "num_inference_steps": 7,
            "use_film_scale_modulation": False,
            "n_groups": 4,
            "kernel_size": 3,
            "beta_schedule": "linear",
            "down_dims": (8, 16, 32),
            "n_obs_steps": 3,
            "horizon": 16,
        },
        normalisation={"STATE": "MEAN_STD", "ACTION": "MEAN_STD", "VISUAL": "IDENTITY"},  # ENV: not named, identity
    ),
    "quantiles": _case(
        VECTORS,
        {**DDIM, "prediction_type": "sample", "clip_sample": False, "n_obs_steps": 1},
        normalisation={"STATE": "QUANTILES", "ENV": "QUANTILE10", "ACTION": "QUANTILES"},
    ),
    "image": _case({STATE: (3,), TOP: (3, 64, 72)}, {**DDIM, "prediction_type": "sample", "crop_shape": (57, 61)}),
    "image_ddpm": _case({STATE: (3,), TOP: (3, 64, 64)}, {"crop_shape": (56, 56), "num_inference_steps": 10}),
    "shared": _case(
        {TOP: (3, 48, 64), STATE: (3,), WRIST: (3, 48, 64), ENV_STATE: (2,)},
        {**DDIM, "spatial_softmax_num_keypoints": 8, "prediction_type": "sample"},
    ),
    "separate": _case(
        {STATE: (3,), TOP: (3, 96, 80), WRIST: (3, 96, 80)},
        {
            **DDIM,
            "use_separate_rgb_encoder_per_camera": True,
            "resize_shape": (64, 60),
            "crop_ratio": 0.9,
            "vision_backbone": "resnet34",
            "prediction_type": "sample",
        },
        normalisation={**MINMAX, "VISUAL": "IDENTITY"},
    ),
    "batchnorm": _case(
        {STATE: (3,), TOP: (3, 64, 64)},
        {**DDIM, "use_group_norm": False, "prediction_type": "sample"},
        normalisation={**MINMAX, "VISUAL": "MIN_MAX"},
    ),
}
STILL = 1  # the dimension of every vector that never varied


def weights(state: dict) -> dict:
    """Random ones, so large that nothing of the network is without effect."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for name, x in state.items():
        if name.endswith(("pos_grid", "num_batches_tracked")):
            out[name] = x
        elif x.ndim < 2:
            out[name] = 0.1 * torch.randn(x.shape, generator=generator) + (name.endswith((".weight", "running_var")))
            out[name] = out[name].abs() if name.endswith("running_var") else out[name]
        else:
            fan_in = x[0].numel()
            out[name] = torch.randn(x.shape, generator=generator) * (1.0 / fan_in) ** 0.5
    return out


def statistics(features: dict) -> dict:
    """Of every kind, by feature; one dimension of every vector is constant."""
    generator = torch.Generator().manual_seed(1)
    stats = {}
    for name, shape in features.items():
        n, image = shape[0], len(shape) == 3
        low = torch.rand(n, generator=generator) * (0.1 if image else 3) - (0 if image else 2)
        high = low + (0.8 if image else 1.5) * (0.5 + torch.rand(n, generator=generator))
        if not image and n > STILL + 1:
            high[STILL] = low[STILL]
        middle, half = (low + high) / 2, (high - low) / 2
        values = {"min": low, "max": high, "mean": middle + 0.1 * half, "std": half / 2}
        values |= {"q01": low + 0.1 * half, "q99": high - 0.1 * half}
        values |= {"q10": low + 0.3 * half, "q90": high - 0.3 * half}
        if name.endswith("top") and image:
            values |= {"min": torch.zeros(3), "max": torch.ones(3)}
        stats[name] = {k: v.view(-1, 1, 1) if image else v for k, v in values.items()}
    return stats
