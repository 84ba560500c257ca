"""DP3's point cloud encoder (Ze et al. 2024, section III-B): a per-point MLP, max pooling, a projection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from policies.precision import large_products

_BLOCK_ROWS = 2048  # points per pass without gradients: keeps the widest activation in the last-level cache
_ACTING_ROWS = 512  # and where only the maximum is asked for: in the second-level cache


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
    def _argmax(self, points: Tensor) -> Tensor:
        """Where the maximum over the points is attained, (N, hidden[-1]), block by block."""
        block = max(1, _BLOCK_ROWS // points.shape[1])
        return torch.cat([self._per_point(part).max(dim=1).indices for part in points.split(block)])

    def critical_points(self, points: Float[Tensor, "n p c"]) -> Float[Tensor, "n m c"]:
        """The points that attain the maximum in some channel; m is the largest number any cloud has.

        Clouds with fewer are filled up with other points of theirs, which cannot change the maximum.
        """
        argmax = self._argmax(points)
        attained = torch.zeros(points.shape[:2], device=points.device)
        attained.scatter_(1, argmax, 1.0)
        m = int(attained.sum(1).max().item())
        index = attained.topk(m, dim=1).indices
        return points.gather(1, index.unsqueeze(-1).expand(-1, -1, points.shape[-1]))

    def forward(self, points: Float[Tensor, "n p c"]) -> Float[Tensor, "n d"]:
        """Normalised points -> features."""
        if not torch.is_grad_enabled():
            block = max(1, _ACTING_ROWS // points.shape[1])
            with large_products():
                most = torch.cat([self._per_point(part).amax(dim=1) for part in points.split(block)])
            return self.projection(most)
        if self.critical_points_only and not points.requires_grad:
            points = self.critical_points(points)
        return self._projected_all(points)

    def _projected_all(self, points: Tensor) -> Tensor:
        return self.projection(self._per_point(points).max(dim=1).values)
