"""Peak memory of losses: what is allocated at once, beyond the encoder passes, forward and backward.

The passes of a method are computed first; then the loss runs again and gets their results back, so that all it
allocates is its own: pooled features, heads, similarities, and the gradients of the heads and of the feature maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from anaus_bench.errors import AnausError
from anaus_bench.interfaces import Objective
from anaus_bench.nn.contrast import detcon_nce, region_nce
from benchmarks.speed.passes import given_back, recorded
from benchmarks.speed.training import Run, alternate, first_batch, taken

PAIRWISE = (region_nce, detcon_nce)


def measure(name: str, objective: Objective[Any], run: Run) -> dict[str, Any]:
    """A row of the table: the peak, and the gradients of the heads that it may hold; or why there is none.

    On a GPU also the peak of whole steps, networks and optimiser included.
    """
    row: dict[str, Any] = {"method": name}
    try:
        run = taken(objective, run)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
            alternate(objective, replace(run, repeats=1), lambda *_: [])
            row["step GB"] = torch.cuda.max_memory_allocated(run.device) / 1e9
        nets, batch = first_batch(objective, run)
        objective.before_forward(nets, 0.5)  # nothing is frozen there
        with run.autocast(), recorded(nets) as calls:
            objective.loss(nets, batch)
    except AnausError as error:
        return row | {"note": f"not measured: {error}"}
    except torch.cuda.OutOfMemoryError:
        return row | {"note": f"not measured: batch {run.batch} does not fit the device"}

    def loss() -> None:
        with run.autocast():
            value, _ = objective.loss(nets, batch)
        value.backward()

    with given_back([call for call in calls if call.in_encoder]):
        peak = peak_bytes(loss, run.device)
    trained = sum(parameter.nbytes for parameter in nets.parameters() if parameter.requires_grad)
    heads = trained - sum(parameter.nbytes for parameter in nets["encoder"].parameters() if parameter.requires_grad)
    return row | {"batch": run.batch, "loss MB": peak / 1e6, "gradients of heads MB": heads / 1e6}


def pairwise(
    nce: Callable[..., Tensor],
    device: torch.device,
    images: int = 192,
    masks: int = 16,
    scales: int = 4,
    dim: int = 256,
) -> dict[str, Any]:
    """A row of AnaUS's or DetCon's loss in float32: both directions of all scales, then one backward pass."""
    torch.manual_seed(0)
    shape = (scales, 2, images, masks, dim)
    predictions, projections = (torch.randn(shape, device=device) for _ in range(2))
    predictions.requires_grad_()
    ids = torch.randint(0, masks, shape[1:4], device=device)

    def loss() -> None:
        losses = [
            nce(anchors[view], candidates[[1 - view, view]], ids[view], ids[[1 - view, view]], 0.1)
            for anchors, candidates in zip(predictions, projections, strict=True)
            for view in (0, 1)
        ]
        torch.stack(losses).sum().backward()

    what = f"{nce.__name__}, {images} images x {masks} masks x {scales} scales"
    return {"method": what, "loss MB": peak_bytes(loss, device) / 1e6}


def peak_bytes(function: Callable[[], None], device: torch.device) -> int:
    """The most bytes of torch's allocator that a function holds at once, beyond those held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
