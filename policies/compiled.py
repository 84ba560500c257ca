"""Inference through torch.compile (``compile=true``): the same policy, its encoders and networks as machine code."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from data.errors import ConfigError
from policies.encoders.obs import ObsEncoder
from policies.heads.head import Head
from policies.policy import Policy


def compile_policy(policy: Policy, **options: Any) -> None:
    """Has encoders and networks of ``policy``, and of the policies it is made of, compiled at their first call.

    That takes up to minutes, once in a process and shape; answers then differ by rounding. Hooks go on working: they
    are called outside. CUDA graphs (mode="reduce-overhead") belong to the thread that recorded them, so they are not
    the default: servers warm up in one thread and answer in another.

    Args:
        options: of torch.compile.

    Raises:
        ConfigError: no C++ compiler, which a CPU's code needs.
    """
    compiler = os.environ.get("CXX", "g++")
    if policy.device.type == "cpu" and "backend" not in options and shutil.which(compiler) is None:
        raise ConfigError(f"compile=true needs a C++ compiler, and {compiler} is not there: install one, or set CXX.")
    options = {"dynamic": False, **options}
    for module in policy.modules():
        part: Any = module.network if isinstance(module, Head) else module if isinstance(module, ObsEncoder) else None
        if part is not None:
            part.forward = torch.compile(part.forward, **options)
