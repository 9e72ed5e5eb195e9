"""A first-in-first-out queue of embeddings (He et al. 2020, arXiv:1911.05722) that is saved with the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """The last `size` embeddings, at first random unit rows.

    Args:
        size: K.
        dim: Width D of an embedding.

    Attributes:
        keys: (K, D) float32 unit rows, a buffer.
        pointer: () int64, where the next row goes, a buffer.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Writes unit rows (B, D) over the oldest; of more than K rows the last K stay."""
        rows = rows[-len(self.keys) :]
        steps = torch.arange(len(rows), device=rows.device)
        self.keys.index_copy_(0, (self.pointer + steps) % len(self.keys), rows.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(rows)) % len(self.keys))
