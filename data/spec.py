"""What a task shows and takes: the shape metadata that data sets, policies, checkpoints and environments share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["state", "rgb", "depth", "pointcloud", "force", "goal", "language", "action"]


@dataclass(frozen=True)
class FieldSpec:
    """One array per time step.

    Attributes:
        shape: without time: (D,) state, (H, W, 3) rgb, (H, W) depth in metres, (P, 3 or 6) pointcloud in metres,
            (T, D) or (D,) force with the newest of T readings last (N, Nm), (D,) or (H, W, 3) goal, (D,) language (an
            embedding), or (1,) of integers (its number, see ``encoder.language.path``). Goal and language are constant
            over an episode.
        dtype: a numpy name: "float32", "uint8".
        kind: how an encoder should read it.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Kind

    @property
    def is_image(self) -> bool:
        """Camera images and goal images."""
        return self.kind in ("rgb", "depth") or (self.kind == "goal" and len(self.shape) == 3)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> FieldSpec:
        """Inverse of ``dataclasses.asdict``."""
        return cls(tuple(d["shape"]), d["dtype"], d["kind"])


@dataclass(frozen=True)
class TaskSpec:
    """The contract between a task and a policy.

    Attributes:
        name: for example "metaworld/door-open-v3".
        obs: one entry per observation key.
        action: (Da,); values lie in [action_low, action_high] (environment units).
        control_hz: actions per second.
        env_args: what rebuilds the environment (as robomimic's ``env_args``).
        versions: package versions of the simulator.
    """

    name: str
    obs: dict[str, FieldSpec]
    action: FieldSpec
    action_low: float = -1.0
    action_high: float = 1.0
    control_hz: float = 0.0
    env_args: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TaskSpec:
        """Inverse of ``to_dict`` (also after a trip through JSON)."""
        d = dict(d)
        d["obs"] = {k: FieldSpec.from_dict(v) for k, v in d["obs"].items()}
        d["action"] = FieldSpec.from_dict(d["action"])
        return cls(**d)

    def differences(self, other: TaskSpec) -> list[str]:
        """Where ``other`` does not show what ``self`` needs, one sentence each; empty when it fits."""
        out = []
        for key, want in self.obs.items():
            have = other.obs.get(key)
            if have is None:
                out.append(f"observation '{key}' {want.shape} {want.dtype} is missing (have {sorted(other.obs)})")
            elif (have.shape, have.dtype) != (want.shape, want.dtype):
                out.append(f"observation '{key}' is {have.shape} {have.dtype}, expected {want.shape} {want.dtype}")
        if self.action.shape != other.action.shape:
            out.append(f"action is {other.action.shape}, expected {self.action.shape}")
        if (self.action_low, self.action_high) != (other.action_low, other.action_high):
            out.append(
                f"action range is [{other.action_low}, {other.action_high}], "
                f"expected [{self.action_low}, {self.action_high}]"
            )
        return out
