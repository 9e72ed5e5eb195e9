"""What the processes of one step tell each other: ranks, rows, means. Outside a group there is one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anaus_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def world_size() -> int:
    """Processes of the group; 1 outside one."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if grouped else 1


def rank() -> int:
    """Number of this process in the group; 0 outside one."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def own_rows(count: int) -> slice:
    """Which rows are this process's, of those of all processes, `count` each."""
    return slice(rank() * count, (rank() + 1) * count)


def rand_rows(count: int, *shape: int, generator: torch.Generator) -> Tensor:
    """(count, *shape) float32 uniform in [0, 1): this process's rows of what one process would draw for all items.

    Args:
        count: Rows of this process, as many as every other's.
        shape: Of a row.
        generator: On the CPU, in one state in all processes.
    """
    return torch.rand(world_size() * count, *shape, generator=generator)[own_rows(count)]


def mean_over_processes(values: Tensor) -> Tensor:
    """Elementwise mean, without gradients; the tensor itself outside a group."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    torch.distributed.all_reduce(total)
    return total / world_size()


def gather_rows(rows: Tensor, *, gradients: bool = False) -> tuple[Tensor, int]:
    """Rows (W * B, ...) of all W processes, and the position of this process's first among them.

    Args:
        rows: (B, ...), as many as every other process's.
        gradients: Whether gradients flow back to the process that a row is from.
    """
    if world_size() == 1:
        return rows, 0
    first = rank() * len(rows)
    if gradients:
        from lightly.utils.dist import gather

        return torch.cat(gather(rows.contiguous())), first
    gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    torch.distributed.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered, first


def divisor(count: Tensor) -> Tensor:
    """What a process divides a sum over `count` of its rows by, for the mean over the processes to be that of all rows.

    Without any row in any process it is such that 0 comes out.

    Args:
        count: () number or total weight of this process's rows.
    """
    if world_size() == 1:
        return count.clamp(min=1)
    total = count.detach().clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / world_size()


def least(number: int) -> int:
    """The smallest of the processes' numbers; waits for all."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
    return int(found)


def greatest(number: int) -> int:
    """The largest of the processes' numbers; waits for all."""
    return -least(-number)
