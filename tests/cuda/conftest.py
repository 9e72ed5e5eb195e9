"""What must hold on a CUDA device. Without one all of it skips; `ANAUS_TEST_DEVICE=cpu` tries the tests themselves."""

from __future__ import annotations

import os

# cuBLAS reads it once, when it is first used; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anaus_bench.execution.device import find_device
from anaus_bench.interfaces import StageContext

CPU = torch.device("cpu")


@pytest.fixture
def device() -> torch.device:
    """The first CUDA device, or that of `ANAUS_TEST_DEVICE`."""
    name = os.environ.get("ANAUS_TEST_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; ANAUS_TEST_DEVICE=cpu tries it on the CPU")
    found: torch.device = find_device(name)
    return found


@pytest.fixture
def other_device(device: torch.device) -> torch.device:
    """A device that is not the current one: the last of several of CUDA, else the CPU."""
    last = torch.cuda.device_count() - 1
    return torch.device("cuda", last) if device.type == "cuda" and last != device.index else CPU


@pytest.fixture
def context_on(stage_context: Callable[..., StageContext]) -> Callable[..., StageContext]:
    """Makes the context of a stage on a device; the same `name` finds its checkpoints again."""

    def make(device: torch.device, name: str = "stage", checkpoint_seconds: float = 60.0) -> StageContext:
        return dataclasses.replace(stage_context(name, checkpoint_seconds=checkpoint_seconds), device=device)

    return make


class Placement(TorchDispatchMode):
    """Within, the devices of all tensors that any operator gives, backward passes and optimisers included.

    Shapes without values, on the device `meta`, are nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[torch.device] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves(result) if isinstance(value, Tensor) and not value.is_meta]
        self.devices |= {value.device for value in tensors}
        return result


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that the step under way did is saved."""


@contextmanager
def killed_in_step(number: int) -> Iterator[None]:
    """Ends the training within in this step, from 0, when it has its gradients and no update."""
    steps = itertools.count()

    def kill(*_: Any) -> None:
        if next(steps) == number:
            raise Killed

    handle = register_optimizer_step_pre_hook(kill)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        handle.remove()


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms; an operator that has none is an expected failure, which names it."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        pytest.xfail(str(error).partition(",")[0])
    finally:
        torch.use_deterministic_algorithms(False)
