"""A device that is too small for a step ends the run in one line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.e2e.conftest import Command, command  # noqa: F401
from tests.e2e.test_bad_input import refused

pytestmark = pytest.mark.cuda


@pytest.fixture
def small(device: torch.device) -> Iterator[None]:
    """The device as if it had 64 MiB."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device, whose memory can be bounded")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**26 / torch.cuda.get_device_properties(device).total_memory, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("small")
def test_want_of_memory_names_device_batch_and_setting_and_finished_stages_stay(command: Command) -> None:  # noqa: F811
    cell = ("run", "--preset", "tiny", "--method", "byol", "--task", "busi-cls", "--device", "cuda")

    outcome = command(*cell, "--set", "pretrain.batch=24", "--set", "pretrain.size=224")

    refused(outcome, "out of memory on device 'cuda", "pretrain.batch=24", "kept")
