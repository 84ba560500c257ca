"""A trained policy as it answers robots: windows of observations, what an episode remembers, and its contract in words.

``real_robot.remote.keys`` has what a request may hold besides observations.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import ConfigError, ContractError
from data.spec import FieldSpec
from launch.contract import take_recorded
from policies.checkpoint import find_checkpoint, load_policy
from policies.compiled import compile_policy
from policies.inference.execution import Execution, build_execution
from policies.policy import Policy
from real_robot.core.types import PolicyClient
from real_robot.remote.keys import CHUNK, DELAY, PREV_CHUNK, PROTOCOL, RESERVED, RESET
from real_robot.remote.lerobot_data import recorded_by_lerobot


@dataclass
class Episode:
    """Of a client.

    Attributes:
        generator: of its noise.
        frames: the newest To, where they come one by one.
        memory: the policy's, see ``Policy.act_from``.
    """

    generator: torch.Generator
    frames: deque[dict[str, np.ndarray]]
    memory: Any = field(default=None)


class ServedPolicy:
    """Answers requests with a policy.

    Args:
        policy: in eval mode, on its device, and executed as it is to be (``build_execution``).
        checkpoint: its folder's hash, for the metadata.
        execution: options of its execution, for the metadata.
        seed: the i-th client's noise is drawn from seed + i.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        checkpoint: str = "",
        execution: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        self.policy = policy
        self._seeds = itertools.count(seed)
        continues = isinstance(policy, Execution) and policy.continues
        self.options = (RESET, PREV_CHUNK, DELAY) if continues else (RESET,)
        self.metadata = metadata(policy, checkpoint, execution or {"name": "sync"}, self.options)

    def episode(self) -> Episode:
        """Of a client that has just come."""
        generator = torch.Generator().manual_seed(next(self._seeds))
        return Episode(generator, deque(maxlen=self.policy.n_obs_steps))

    def warm_up(self, n: int = 3) -> None:
        """Answers requests of zeros, so that the first real one need not wait for what happens only once."""
        zeros = {key: np.zeros(f.shape, f.dtype) for key, f in self.policy.spec.obs.items()}
        episode = Episode(torch.Generator(), deque(maxlen=self.policy.n_obs_steps))
        for _ in range(n):
            answer = self.infer(zeros, episode)
            if PREV_CHUNK in self.options:
                self.infer({**zeros, PREV_CHUNK: answer["actions"]}, episode)

    @torch.no_grad()
    def infer(self, request: Mapping[str, Any], episode: Episode) -> dict[str, np.ndarray]:
        """ "actions" (Ta, Da), and where the policy tells more than it executes, ``CHUNK``.

        Raises:
            ContractError: the request does not fit, or the policy's answer is not finite.
        """
        reset, previous, delay = self._options(request)
        if reset:
            episode.frames.clear()
            episode.memory = None
        obs = {k: torch.from_numpy(v[None]).to(self.policy.device) for k, v in self._window(request, episode).items()}
        chunk = self._next(obs, episode) if previous is None else self._continue(obs, previous, delay, episode)
        actions = np.array(chunk[0].cpu().numpy(), np.float32)
        if not np.isfinite(actions).all():
            raise ContractError(f"The policy {self.policy.spec.name} answered with actions that are not finite.")
        answer = {"actions": actions[: self.policy.n_action_steps]}
        return answer if len(actions) == self.policy.n_action_steps else {**answer, CHUNK: actions}

    def _next(self, obs: dict[str, Tensor], episode: Episode) -> Tensor:
        """(1, n, Da) from now on, environment units; n is what the policy tells."""
        policy, past = self.policy, self.policy.n_obs_steps - 1
        if type(policy).act is Policy.act and type(policy).act_from is Policy.act_from:  # a chunk is all it gives
            sample = policy.sample(obs, noise=policy.draw_noise(1, episode.generator))
            return policy.unnormalise_action(sample)[:, past:]
        actions, episode.memory = policy.act_from(obs, episode.memory, episode.generator)
        if isinstance(policy, Execution):
            return policy.unnormalise_action(episode.memory.plan)[:, past:]
        return actions

    def _continue(self, obs: dict[str, Tensor], previous: np.ndarray, delay: int, episode: Episode) -> Tensor:
        """As ``_next``, but going on where ``previous`` leads; its first ``delay`` actions are previous'."""
        policy = self.policy
        assert isinstance(policy, Execution)
        past, given = policy.n_obs_steps - 1, torch.from_numpy(previous)[None].to(policy.device)
        since = policy.horizon - past - len(previous)
        known = policy.policy.normaliser.normalise("action", given)
        # What came before is not known, and not held to; the same action again is as good a start as any.
        plan = torch.cat([known[:, :1].expand(-1, since + past, -1), known], 1)
        chunk = policy.follow(obs, plan, episode.generator, delay=delay, since=since, past_known=False)
        ahead = policy.unnormalise_action(chunk)[:, past:]
        return torch.cat([given[:, :delay], ahead[:, delay:]], 1)

    def _options(self, request: Mapping[str, Any]) -> tuple[bool, np.ndarray | None, int]:
        unknown = sorted(k for k in request if str(k).startswith(RESERVED) and k not in self.options)
        if unknown:
            name = self.metadata["execution"]["name"]
            raise ContractError(
                f"The request holds {', '.join(unknown)}; served with execution.name={name} this policy knows "
                f"{', '.join(self.options)} (execution.name=rtc, prefix or rti know them all)."
            )
        reset, given, delay = request.get(RESET, False), request.get(PREV_CHUNK), request.get(DELAY, 0)
        if not isinstance(reset, bool | np.bool_):
            raise ContractError(f"{RESET} must be true or false, is {reset!r}.")
        n, da = self.policy.horizon - self.policy.n_obs_steps + 1, self.policy.action_dim
        previous = None
        if given is not None:
            if not isinstance(given, np.ndarray) or given.dtype.kind != "f" or given.shape[1:] != (da,):
                raise ContractError(f"{PREV_CHUNK} must be floats of shape (n, {da}); it is {_what(given)}.")
            if not 1 <= len(given) <= n or not np.isfinite(given).all():
                raise ContractError(f"{PREV_CHUNK} must be 1 to {n} actions, all finite; it is {_what(given)}.")
            previous = given.astype(np.float32)
        if isinstance(delay, bool) or not isinstance(delay, int | np.integer):
            raise ContractError(f"{DELAY} must be a whole number of control steps, is {delay!r}.")
        if not 0 <= delay <= (0 if previous is None else len(previous)):
            raise ContractError(f"{DELAY}={delay} must lie in 0..n, where {PREV_CHUNK} has n actions.")
        return bool(reset), previous, int(delay)

    def _window(self, request: Mapping[str, Any], episode: Episode) -> dict[str, np.ndarray]:
        """(To, *shape) by key: the request's own, or that which the client's newest frame completes."""
        spec, to = self.policy.spec, self.policy.n_obs_steps
        checked = {key: _checked(key, request, f, to) for key, f in spec.obs.items()}
        single = [key for key, x in checked.items() if x.ndim == len(spec.obs[key].shape)]
        if not single:
            return {key: np.array(x) for key, x in checked.items()}
        if len(single) < len(checked):
            windows = sorted(set(checked) - set(single))
            raise ContractError(f"Observations {windows} are windows, {single} are single frames: send all alike.")
        missing = to - 1 - len(episode.frames)
        episode.frames.extend([checked] * (1 + max(0, missing)))  # an episode's first frame stands for those before it
        return {key: np.stack([frame[key] for frame in episode.frames]) for key in checked}


def _checked(key: str, request: Mapping[str, Any], want: FieldSpec, to: int) -> np.ndarray:
    """An observation, of the dtype it should have."""
    expected = f"expected {want.shape} or ({to}, {', '.join(map(str, want.shape))}) {want.dtype}"
    if key not in request:
        have = sorted(str(k) for k in request)
        raise ContractError(f"Observation '{key}' is missing; {expected}. The request holds {have}.")
    try:
        x, dtype = np.asarray(request[key]), np.dtype(want.dtype)
    except ValueError as e:
        raise ContractError(f"Observation '{key}' is no array ({e}); {expected}.") from e
    if x.shape not in (want.shape, (to, *want.shape)):
        raise ContractError(f"Observation '{key}' is {_what(x)}; {expected}.")
    if x.dtype.newbyteorder("=") != dtype and not x.dtype.kind == dtype.kind == "f":
        raise ContractError(f"Observation '{key}' is {_what(x)}; {expected}.")
    if dtype.kind == "f" and not np.isfinite(x).all():
        raise ContractError(f"Observation '{key}' holds values that are not finite.")
    return x.astype(dtype, copy=False)


def _what(x: Any) -> str:
    return f"{x.shape} {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def metadata(policy: Policy, checkpoint: str, execution: Mapping[str, Any], options: tuple[str, ...]) -> dict[str, Any]:
    """The contract as the first frame tells it: plain data."""
    spec = policy.spec
    action = {"shape": list(spec.action.shape), "low": spec.action_low, "high": spec.action_high}
    action |= {key: spec.env_args[f"action_{key}"] for key in ("names", "units") if f"action_{key}" in spec.env_args}
    observation = {k: {"shape": list(f.shape), "dtype": f.dtype, "kind": f.kind} for k, f in spec.obs.items()}
    return {
        "deft_protocol": PROTOCOL,
        "task": spec.name,
        "observation": observation,
        "action": action,
        "control_hz": spec.control_hz,
        "rule": spec.env_args.get("rule"),
        "actions": spec.env_args.get("actions"),
        "horizon": policy.horizon,
        "n_obs_steps": policy.n_obs_steps,
        "n_action_steps": policy.n_action_steps,
        "execution": dict(execution),
        "options": list(options),
        "checkpoint": checkpoint,
    }


def load_served(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    policy: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    n_action_steps: int | None = None,
    black_box: str | None = None,
    features: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    lerobot: Mapping[str, Any] | None = None,
    compiled: bool = False,
    seed: int = 0,
) -> ServedPolicy:
    """A checkpoint's policy, ready to answer.

    Args:
        checkpoint: a run folder, or a checkpoint folder.
        device: auto (the GPU if there is one), cpu or cuda.
        policy: options of the head that inference may change.
        execution: see ``build_execution``; None is the policy's plain chunks.
        n_action_steps, black_box, features: see ``load_policy``.
        data: of a checkpoint that does not say what it is for, see ``take_recorded``.
        lerobot: {"units", "calibration"}, where LeRobot recorded ``data``: see ``recorded_by_lerobot``.
        compiled: see ``compile_policy``.
        seed: see ServedPolicy.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device={device} cannot be had: auto takes what there is, cpu is always there.")
    folder = find_checkpoint(checkpoint)
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    loaded = load_policy(
        folder,
        device=where,
        overrides=policy,
        n_action_steps=n_action_steps,
        black_box=black_box,
        features=features,
    )
    told = None
    if lerobot is not None and lerobot.get("units"):
        if data is None or not lerobot.get("calibration"):
            raise ConfigError("lerobot.units needs data=, what LeRobot has recorded, and lerobot.calibration=.")
        told = recorded_by_lerobot(data, **lerobot)
    if data is not None:
        take_recorded(loaded, data, told)
    if compiled:
        compile_policy(loaded)
    options = dict(execution or {"name": "sync"})
    return ServedPolicy(
        build_execution(loaded, options), checkpoint=checkpoint_hash(folder), execution=options, seed=seed
    )


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's two files, or its only one."""
    digest = hashlib.sha256()
    for file in [folder] if folder.is_file() else [folder / "config.json", folder / "model.safetensors"]:
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


class LocalPolicy(PolicyClient):
    """A policy of this process behind the door of a remote one.

    Args:
        served: asked by nobody else.
    """

    def __init__(self, served: ServedPolicy):
        self.metadata = served.metadata
        self._served, self._episode = served, served.episode()

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """See ``ServedPolicy.infer``."""
        return self._served.infer(obs, self._episode)

    def close(self) -> None:
        """There is nothing to end."""
