"""Running statistics of batch norm, kept from what they should not see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_statistics(*networks: nn.Module) -> Iterator[None]:
    """Meanwhile batch norm within the networks normalises as ever, but its running statistics stay as they are."""
    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
