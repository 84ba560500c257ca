"""Random numbers of a training step, drawn for the global batch: they do not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor


class BatchRng:
    """Draws rows for the global batch and hands out the rows of this process.

    With W processes of batch b, rank r receives rows [r*b, (r+1)*b) of what one process with batch W*b would draw
    from the same seed. Data-parallel training therefore equals single-process training up to float noise.

    Args:
        seed: of the stream.
        device: where the numbers are drawn and returned.
        rank, world_size: this process among all.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1):
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size

    def _rows(self, drawn: Tensor, n: int) -> Tensor:
        return drawn[self.rank * n : (self.rank + 1) * n]

    def randn(self, n: int, *shape: int) -> Tensor:
        """Standard normal, (n, *shape)."""
        drawn = torch.randn(n * self.world_size, *shape, generator=self.generator, device=self.device)
        return self._rows(drawn, n)

    def rand(self, n: int, *shape: int) -> Tensor:
        """Uniform on [0, 1), (n, *shape)."""
        drawn = torch.rand(n * self.world_size, *shape, generator=self.generator, device=self.device)
        return self._rows(drawn, n)

    def randint(self, high: int, n: int, *shape: int) -> Tensor:
        """Integers in [0, high), (n, *shape)."""
        drawn = torch.randint(high, (n * self.world_size, *shape), generator=self.generator, device=self.device)
        return self._rows(drawn, n)

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state; the same on every rank."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream of ``state_dict``."""
        self.generator.set_state(state["generator"].cpu())
