"""Times functions against each other in one run: called in turn, medians, so that a busy moment hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision


def interleaved(functions: Sequence[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each function; the first round is not counted.

    On the CPU with one thread these are CPU seconds, which other processes disturb least; else they are wall seconds.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(repeats + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - start)
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
    }
