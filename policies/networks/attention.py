"""What the transformers among the denoising networks share: attention, feed-forward, dropout, initial weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad


def attend(
    q: Float[Tensor, "b n t d"],
    k: Float[Tensor, "b n s d"],
    v: Float[Tensor, "b n s d"],
    mask: Float[Tensor, "t s"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b n t d"]:
    """Scaled dot-product attention of N heads; ``mask`` is added to the scores, 0 or -inf.

    The fused kernels have no forward-mode derivative: for dual tensors it is written out.
    """
    if forward_ad._current_level < 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.softmax(-1), dropout) @ v


def causal_mask(t: int, s: int, offset: int = 0) -> Float[Tensor, "t s"]:
    """0 where query i may see key j, j <= i + offset; -inf elsewhere."""
    later = torch.arange(s)[None] > torch.arange(t)[:, None] + offset
    return torch.zeros(t, s).masked_fill(later, float("-inf"))


class Dropout(nn.Module):
    """Dropout in training, and there only of what gradients are recorded of.

    What a network says for a target (MeanFlow's derivative, the steps that a shortcut is made of) is then the same
    function at every point that it is asked at, and a derivative of it exists. Masks come from torch's global
    generator, which a run saves and resumes; each of several processes draws its own, other than one process would.

    Args:
        p: rate.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout={p} must lie in [0, 1)")
        self.p = p

    @property
    def rate(self) -> float:
        """As it is now."""
        return self.p if self.training and torch.is_grad_enabled() else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Entries fall away, the others grow for it."""
        rate = self.rate
        return F.dropout(x, rate) if rate else x


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, and to a prefix whose keys and values are given.

    Args:
        dim: W, a multiple of n_heads.
        n_heads: N.
        dropout: of the attention weights.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t w"], mask: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "b t w"], tuple[Tensor, Tensor]]:
        """What is attended to, and x's keys and values (B, N, T, W / N).

        Args:
            x: the sequence.
            mask: (T, L + T), see ``attend``.
            prefix: keys and values of L tokens before x's.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        keys, values = (k, v) if prefix is None else (torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2))
        out = attend(q, keys, values, mask, self.dropout.rate)
        return self.out(out.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """Two layers with GELU, four times as wide between them."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        """Each token for itself."""
        return self.lin2(self.dropout(F.gelu(self.lin1(x))))


class Block(nn.Module):
    """Pre-LayerNorm self-attention and feed-forward."""

    def __init__(self, dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), SelfAttention(dim, n_heads, dropout)
        self.norm2, self.feed = nn.LayerNorm(dim), FeedForward(dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W); arguments as of SelfAttention."""
        return self.remembered(x, mask, prefix)[0]

    def remembered(
        self, x: Tensor, mask: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output, and the keys and values that serve as another sequence's prefix."""
        attended, memory = self.attention(self.norm1(x), mask, prefix)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed(self.norm2(x))), memory


def check_heads(width: int, n_heads: int) -> None:
    """Raises ValueError where the heads do not share the width evenly."""
    if width % n_heads:
        raise ValueError(f"width={width} must be a multiple of n_heads={n_heads}")


def init_weights(network: nn.Module, std: float = 0.02) -> None:
    """Weights of linear layers and position embeddings N(0, std), biases 0, as GPT-2 and Diffusion Policy have it."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name.startswith("position"):
            nn.init.normal_(parameter, std=std)
