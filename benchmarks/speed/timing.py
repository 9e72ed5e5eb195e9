"""Times functions against each other in one run: called in turn, medians, so that a busy moment hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightly
import torch
import torchvision


def clock(device: torch.device) -> Callable[[], float]:
    """Reads seconds, once the device has done its work.

    On the CPU with one thread these are CPU seconds, which other processes disturb least; else they are wall seconds.
    """
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def interleaved(functions: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each function, by `clock`; the first round is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    now = clock(device)
    for _ in range(repeats + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = now()
            function()
            taken.append(now() - start)
    return [statistics.median(taken[1:]) for taken in seconds]


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were made on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightly": lightly.__version__,
    }
