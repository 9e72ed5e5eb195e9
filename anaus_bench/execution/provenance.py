"""What a record says of the machine, the versions and the source that made it."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anaus_bench import __version__

if TYPE_CHECKING:
    import torch


def provenance(device: torch.device) -> dict[str, Any]:
    """Parts of a record; what does not change while a process lives is looked up once."""
    return {
        "peak_memory": _peak_memory(device),
        "versions": versions(),
        "source": _source_state(),
        "machine": machine(device),
    }


def forget_peak(device: torch.device) -> None:
    """Begins to measure the largest use of the device's memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@functools.cache
def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers of a record were made on."""
    import torch

    found: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: largest resident size of this process so far, and of the device since `forget_peak`."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device"] = int(torch.cuda.max_memory_allocated(device))
    return peak


@functools.cache
def versions() -> dict[str, str]:
    """Of what results depend on."""
    import numpy
    import torch
    import torchvision

    return {
        "anaus-bench": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


@functools.cache
def _source_state() -> dict[str, Any]:
    """Commit of the source tree that ran, and whether it was changed; empty for an installed wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or shutil.which("git") is None:
        return {}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
