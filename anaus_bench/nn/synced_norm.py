"""Batch norm in several processes: statistics of the batches of all (SyncBN), or of shuffled parts (ShuffleBN)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anaus_bench.distributed.group import gather_rows, own_rows, rank, world_size
from anaus_bench.errors import SettingsError

_own_statistics = False  # whether each process takes its own statistics for now


def synchronise(nets: nn.Module, device: torch.device) -> None:
    """Lets every batch norm within `nets` take the statistics of all processes, in place: names and parameters stay."""
    synced: Any = SyncedBatchNorm if device.type == "cuda" else SyncedBatchNormOnCPU
    for module in nets.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = synced


class SyncedBatchNorm(nn.SyncBatchNorm):
    """torch's, which ShuffleBN can switch off."""

    process_group = None  # all processes

    def forward(self, rows: Tensor) -> Tensor:
        """Normalises (B, C, ...) over all dimensions but C."""
        return nn.BatchNorm2d.forward(self, rows) if _own_statistics else super().forward(rows)


class SyncedBatchNormOnCPU(nn.BatchNorm2d):
    """The same in plain operations, for torch has none on the CPU. Processes may hold different numbers of rows."""

    def _check_input_dim(self, rows: Tensor) -> None:
        """Any number of dimensions from two on."""

    def forward(self, rows: Tensor) -> Tensor:
        """Normalises (B, C, ...) over all dimensions but C."""
        if _own_statistics or not self.training or world_size() == 1:
            return super().forward(rows)
        dims, shape = [0, *range(2, rows.ndim)], [1, -1, *[1] * (rows.ndim - 2)]
        with torch.autocast(rows.device.type, enabled=False):
            wide = rows.float()
            own_count = wide.new_tensor([rows.numel() / rows.shape[1]])
            total = _Sum.apply(torch.cat([wide.sum(dims), own_count]))
            count = total[-1].detach()
            mean = total[:-1] / count
            centred = wide - mean.view(shape)
            variance = _Sum.apply(centred.square().sum(dims)) / count
            if self.track_running_stats:
                self._follow(mean.detach(), (variance * count / (count - 1)).detach())
            scale = self.weight * (variance + self.eps).rsqrt()
            result: Tensor = centred * scale.view(shape) + self.bias.view(shape)
            return result.to(rows.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is its gradient, that of the sum of the processes' losses."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """The same in all processes."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As forward."""
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


@torch.no_grad()
def in_shuffled_parts(
    network: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, parts: int, seed: int
) -> tuple[Tensor, ...]:
    """What `network` makes of the images (B, ...), a tuple of (B, ...), where a batch statistic is that of a part.

    ShuffleBN (He et al. 2020, Sec. 3.3): the images of all processes are permuted and cut into equal parts, which pass
    one by one, so that batch norm does not tell which image belongs to which. Each process passes its share of the
    parts. With one part in several processes there is nothing to shuffle: batch norm is that of the networks.

    Args:
        network: Takes a part.
        images: Those of this process.
        parts: A number that divides the images of all processes.
        seed: Of the permutation, the same in all processes.

    Raises:
        SettingsError: The processes cannot have equal shares of the parts.
    """
    processes = world_size()
    if processes > 1 and parts == 1:
        return network(images)
    if parts % processes:
        raise SettingsError(
            f"objective.bn_splits={parts} cannot be dealt to {processes} processes; set it to a multiple of them, or 1"
        )
    everyone, _ = gather_rows(images)
    order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed)).to(images.device)
    share = parts // processes
    with _without_synchronising():
        passed = [network(everyone[part]) for part in order.chunk(parts)[rank() * share : (rank() + 1) * share]]
    back = order.argsort()[own_rows(len(images))]
    return tuple(gather_rows(torch.cat(rows))[0][back] for rows in zip(*passed, strict=True))


@contextmanager
def _without_synchronising() -> Iterator[None]:
    global _own_statistics
    _own_statistics = True
    try:
        yield
    finally:
        _own_statistics = False
