"""Self-distillation without labels, DINO (Caron et al. 2021, arXiv:2104.14294): head, centred targets and loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.distributed.group import gather_rows


class DINOHead(nn.Module):
    """Three linear layers with GELU, L2 norm, then cosines with `prototypes` unit vectors (App. C).

    The last layer is weight-normalised with its scales fixed at 1, that is, its rows are unit vectors.

    Args:
        in_dim: Width of the rows.
        hidden_dim: Of the first two layers.
        bottleneck_dim: Of the third.
        prototypes: K.
        norm: Batch norm after the first two layers.
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int, *, norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for width in (in_dim, hidden_dim):
            self.layers.append(nn.Linear(width, hidden_dim))
            if norm:
                self.layers.append(nn.BatchNorm1d(hidden_dim))
            self.layers.append(nn.GELU())
        self.layers.append(nn.Linear(hidden_dim, bottleneck_dim))
        self.prototypes = nn.Linear(bottleneck_dim, prototypes, bias=False)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Logits (V, B, K) in [-1, 1] of the rows (B, in_dim) of V views, each with its own batch statistics."""
        rows = torch.stack([self.layers(view) for view in views])
        return F.linear(F.normalize(rows, dim=2), F.normalize(self.prototypes.weight, dim=1))


class CentredTargets(nn.Module):
    """The teacher's targets: softmax((logits - centre) / temperature); both are buffers, saved with the networks.

    Args:
        prototypes: K.
        temperature: The first.
        momentum: m of the centre (Eq. 4).
    """

    centre: Tensor
    temperature: Tensor

    def __init__(self, prototypes: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, logits: Tensor) -> Tensor:
        """Distributions of logits (..., K), float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return F.softmax((logits.float() - self.centre) / self.temperature, dim=-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Eq. 4: moves the centre towards the mean logits of all rows (..., K) of all processes."""
        mean = logits.float().flatten(0, -2).mean(dim=0, keepdim=True)
        self.centre.lerp_(gather_rows(mean)[0].mean(dim=0), 1 - self.momentum)


def cross_view_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Eq. 3: mean cross-entropy of the student's view v under the teacher's view g, over all pairs g != v.

    Args:
        targets: (G, B, K) distributions of the first G views.
        logits: (V, B, K) of the student for all V >= 2 views, in the same order.
        temperature: The student's.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probabilities = F.log_softmax(logits.float() / temperature, dim=2)
        pairs = -torch.einsum("gbk,vbk->gv", targets, log_probabilities)
        same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
        return pairs.masked_fill(same, 0).sum() / ((pairs.numel() - len(pairs)) * targets.shape[1])
