"""Wrench histories: a stack of causal convolutions (Lee et al. 2019, "Making Sense of Vision and Touch", III-B).

They take the last 32 readings of a six-axis sensor through five causal convolutions of stride 2. The same tree of
readings is seen by five layers of kernel 2 with dilations 1, 2, 4, ... (van den Oord et al. 2016), which also answer at
every step, for sensors that are recorded at the policy's own rate.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ForceEncoder(nn.Module):
    """(B, To, T, D) histories or (B, To, D) readings -> (B, To, out_dim).

    Args:
        shape: (T, D), the newest reading last, or (D,): then the To frames are the history.
        width: channels.
        n_layers: 2^n_layers readings are seen.
        out_dim: features per frame.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int = 32, n_layers: int = 5, out_dim: int = 64):
        super().__init__()
        if len(shape) not in (1, 2):
            raise ValueError(f"a wrench history is (T, D), a reading (D,), not {shape}")
        if len(shape) == 2 and shape[0] > 2**n_layers:
            raise ValueError(f"n_layers={n_layers} see {2**n_layers} readings, but there are {shape[0]}")
        self.history = len(shape) == 2
        self.input = nn.Linear(shape[-1], width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_layers))
        self.output = nn.Linear(width, out_dim)
        self.out_dim = out_dim

    def _causal(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t w"]:
        h = self.input(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            past = F.pad(norm(h).transpose(1, 2), (convolution.dilation[0], 0))  # type: ignore[index,arg-type]
            h = h + F.gelu(convolution(past)).transpose(1, 2)
        return h

    def forward(self, x: Tensor) -> Float[Tensor, "b to c"]:
        """Normalised wrenches -> features; none depends on later readings."""
        if self.history:
            return self.output(self._causal(x.flatten(0, 1))[:, -1]).unflatten(0, x.shape[:2])
        return self.output(self._causal(x))
