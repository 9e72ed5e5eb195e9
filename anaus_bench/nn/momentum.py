"""Target networks: exponential moving averages of online networks (Grill et al. 2020, arXiv:2006.07733)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(module: ModuleT) -> ModuleT:
    """A copy that takes no gradients; it stays in training mode, so its batch norm uses batch statistics."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Sets target to momentum * target + (1 - momentum) * online, in place.

    Parameters only: the running statistics of the target's batch norm come from its own forward passes.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


def momentum_schedule(base_momentum: float, progress: float) -> float:
    """Momentum that rises from `base_momentum` at progress 0 to 1 at progress 1 along a half cosine (BYOL Sec. 3.3)."""
    return 1 - (1 - base_momentum) * (math.cos(math.pi * progress) + 1) / 2
