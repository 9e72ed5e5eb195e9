"""The torch device of a run."""

from __future__ import annotations

import re
from typing import Any

from anaus_bench.distributed import team as distributed
from anaus_bench.errors import SettingsError, shown

DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def known_device(name: str) -> str:
    """The name, if it is one that a machine may have a device of; imports no torch.

    Raises:
        SettingsError: It is none, such as `meta`, on which nothing is computed.
    """
    if not DEVICE.fullmatch(name):
        raise SettingsError(f"unknown device {shown(name)}; pass auto, cpu, cuda or cuda:N")
    return name


def find_device(name: str) -> Any:
    """The torch device of this name; `auto` and `cuda` are the CUDA device of this process, `auto` else the CPU.

    Raises:
        SettingsError: Unknown, not there, or the same one for several processes.
    """
    import torch

    name = known_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.processes() > 1 and name.startswith("cuda:"):
        raise SettingsError(f"device {name!r} cannot serve {distributed.processes()} processes; pass auto or cuda")
    try:
        device = torch.device("cuda", distributed.local_rank()) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {name!r} cannot be used ({reason}); pass auto, cpu, cuda or cuda:N") from error
    return device
