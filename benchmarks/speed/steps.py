"""A training step against the encoder passes it cannot avoid, as a ratio in one run.

A step is loss, backward, optimiser (LARS) and moving average, on views made beforehand (what AnaUS cuts and damages
for its context branch is part of the step). The passes are those of the same encoder on as many images: AnaUS 3 forward
and backward, 3 forward without gradients; BYOL 2 and 2. Seconds are those of the process on a CPU with one thread, so
that a shared machine disturbs them little, else of the clock.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anaus_bench.data.views import Batch, make_batch
from anaus_bench.interfaces import Objective
from anaus_bench.nn.encoder import STRIDES, Encoder
from anaus_bench.nn.lars import LARS, parameter_groups
from anaus_plugins.objectives.anaus import AnaUS, AnaUSSettings
from anaus_plugins.objectives.byol import BYOL, BYOLSettings
from benchmarks.speed.timing import interleaved

PASSES = {"anaus": 3, "byol": 2}


def measure(
    method: str = "anaus",
    batch: int = 8,
    size: int = 224,
    device: str = "cpu",
    repeats: int = 5,
    precision: str = "fp32",
    arch: str = "resnet18",
) -> dict[str, float | str]:
    """Seconds of a step and of its bare passes (medians of interleaved repeats), their ratio, and images per second."""
    place = torch.device(device)
    objective: Objective[Any] = AnaUS(AnaUSSettings()) if method == "anaus" else BYOL(BYOLSettings())
    torch.manual_seed(0)
    nets = objective.build(Encoder(arch, objective.finest_stride())).to(place, memory_format=torch.channels_last)
    drawn = _draw(objective, batch, size, place)
    optimiser = LARS(parameter_groups(nets), lr=0.1, weight_decay=1e-6)
    strides = [stride for stride in STRIDES if stride >= objective.finest_stride()]
    bare = Encoder(arch, objective.finest_stride()).to(place, memory_format=torch.channels_last)
    weights = [parameter for parameter in bare.parameters() if parameter.requires_grad]

    def autocast() -> torch.autocast:
        return torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with autocast():
            loss, _ = objective.loss(nets, drawn)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        objective.after_step(nets, 0.5)

    def passes() -> None:
        total: Tensor | float = 0.0
        for number in range(PASSES[method]):
            images = drawn.views[number % 2]
            with autocast():
                total = total + sum(features.float().mean() for features in bare(images, strides).values())
                with torch.no_grad():
                    bare(images, strides)
        torch.autograd.grad(total, weights)  # type: ignore[arg-type]

    taken, floor = interleaved((step, passes), repeats, place)
    return {
        "method": method,
        "precision": precision,
        "step_s": taken,
        "passes_s": floor,
        "ratio": taken / floor,
        "images_per_s": batch / taken,
    }


def _draw(objective: Objective[Any], count: int, size: int, device: torch.device) -> Batch:
    """Views of random images whose label maps have five structures."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 256, 256), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 6, (count, 4, 4), generator=generator, dtype=torch.uint8)
    masks = nn.functional.interpolate(masks[:, None], scale_factor=64, mode="nearest")[:, 0]
    boxes = torch.tensor([[0.0, 0.0, 256.0, 256.0]]).repeat(count, 1)
    labels = torch.full((count,), -1)
    return make_batch(images, masks, boxes, labels, torch.arange(count), objective.views(size), 0, 0, device)
