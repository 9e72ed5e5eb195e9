"""A first-in-first-out queue of embeddings (He et al. 2020, arXiv:1911.05722) that is saved with the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.errors import SettingsError


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


def check_queue(length: int, bn_splits: int, images: int, batch: int) -> None:
    """Refuses a queue, or parts of a batch, with which the loss would not mean what it says.

    Args:
        length: Keys in the queue.
        bn_splits: Parts of the batch that pass the key network one by one.
        images: Images of the corpus.
        batch: Images per step.

    Raises:
        SettingsError: The queue holds more keys than there are images, or parts of the batch have one image.
    """
    if length > images:
        raise SettingsError(
            f"objective.queue_size={length} is more than the {images} images of the corpus, so keys of a query's own "
            "image would be among its negatives; lower it"
        )
    if batch % bn_splits or batch == bn_splits:
        raise SettingsError(
            f"pretrain.batch={batch} does not split into objective.bn_splits={bn_splits} equal parts of at least 2 "
            "images; change one of them"
        )
