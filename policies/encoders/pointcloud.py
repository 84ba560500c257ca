"""DP3's point cloud encoder (Ze et al. 2024, section III-B): a per-point MLP, max pooling, a projection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_BLOCK_ROWS = 8192  # points per pass without gradients: keeps the widest activation in the last-level cache


class PointCloudEncoder(nn.Module):
    """(N, P, C) -> (N, out_dim), invariant to the order of the points.

    The maximum picks at most ``hidden[-1]`` points of a cloud, and only they receive gradients. Training therefore
    finds them without gradients and runs the differentiable pass on them alone: the same loss and the same gradients,
    at a fraction of the time and memory (PointNet calls them critical points).

    Args:
        in_dim: 3 (xyz) or 6 (xyz + colour).
        hidden: widths of the per-point MLP; LayerNorm and ReLU after every layer, no BatchNorm (DP3's ablation).
        out_dim: features per cloud.
        critical_points_only: the shortcut above; False differentiates through every point.
    """

    def __init__(
        self,
        in_dim: int = 3,
        *,
        hidden: Sequence[int] = (64, 128, 256),
        out_dim: int = 64,
        critical_points_only: bool = True,
    ):
        super().__init__()
        widths = [in_dim, *hidden]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in hidden)
        self.projection = nn.Sequential(nn.Linear(hidden[-1], out_dim), nn.LayerNorm(out_dim))
        self.critical_points_only = critical_points_only
        self.out_dim = out_dim

    def _per_point(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = F.relu(norm(linear(x)), inplace=True)
        return x

    @torch.no_grad()
    def _max(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum over the points and where it is attained, both (N, hidden[-1]), block by block."""
        block = max(1, _BLOCK_ROWS // points.shape[1])
        parts = [self._per_point(part).max(dim=1) for part in points.split(block)]
        return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])

    def critical_points(self, points: Float[Tensor, "n p c"]) -> Float[Tensor, "n m c"]:
        """The points that attain the maximum in some channel; m is the largest number any cloud has.

        Clouds with fewer are filled up with other points of theirs, which cannot change the maximum.
        """
        argmax = self._max(points)[1]
        attained = torch.zeros(points.shape[:2], device=points.device)
        attained.scatter_(1, argmax, 1.0)
        m = int(attained.sum(1).max().item())
        index = attained.topk(m, dim=1).indices
        return points.gather(1, index.unsqueeze(-1).expand(-1, -1, points.shape[-1]))

    def forward(self, points: Float[Tensor, "n p c"]) -> Float[Tensor, "n d"]:
        """Normalised points -> features."""
        if not torch.is_grad_enabled():
            return self.projection(self._max(points)[0])
        if self.critical_points_only and not points.requires_grad:
            points = self.critical_points(points)
        return self._projected_all(points)

    def _projected_all(self, points: Tensor) -> Tensor:
        return self.projection(self._per_point(points).max(dim=1).values)
