"""Our steps against the steps that lightly's examples make of its parts: SimCLR, MoCo v2 and BYOL, in one run.

Both start from the same decoded images in memory, ResNet-18, views of the same size, heads and queue of the same size.
lightly's side: its transforms on PIL images in a DataLoader, contiguous tensors, its heads, losses and moving averages,
SGD. Ours: the step of `anaus_bench.training.pretraining`, from the packed images to the moving averages, with LARS.

On the CPU the DataLoader works in the process and both have one thread, so that seconds are CPU seconds and it does not
matter how well workers and training share the cores; on a GPU it has one worker per core, which also work during our
turn.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, MoCoV2Transform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from anaus_bench.machine.parallel import cores
from anaus_bench.registry import Registry
from benchmarks.speed.training import DISTINCT, Run, alternate, generated_corpus

WIDTH, DIM, QUEUE = 512, 128, 4096  # of ResNet-18's features, of embeddings, of MoCo's queue
BYOL_HIDDEN, BYOL_DIM = 1024, 256
MOMENTUM = 0.996
# Ours in the sizes of lightly's examples; its key network sees the batch in one part.
OURS: dict[str, dict[str, Any]] = {
    "simclr": {"head_norm": True},
    "mocov2": {"bn_splits": 1},
    "byol": {"hidden_dim": BYOL_HIDDEN},
}


def measure(name: str, run: Run) -> dict[str, Any]:
    """A row of a method: images per second of both (medians) and the median of the rounds' ratios."""
    objective = Registry().create("objectives", name, overrides=OURS[name])
    threads = torch.get_num_threads()
    if run.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        found = alternate(objective, run, lambda *_: [STEPS[name](run)])
    finally:
        torch.set_num_threads(threads)
    lightly = [seconds for (seconds,) in found.others]
    return {
        "method": name,
        "lightly images/s": run.batch / statistics.median(lightly),
        "ours images/s": run.batch / statistics.median(found.steps),
        "ratio": statistics.median(theirs / ours for theirs, ours in zip(lightly, found.steps, strict=True)),
    }


class _Pictures(Dataset[list[Tensor]]):
    """The views of the corpus's images, held decoded."""

    def __init__(self, count: int, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        images = generated_corpus().images
        self.pictures = [Image.fromarray(images[number % DISTINCT]).convert("RGB") for number in range(count)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> list[Tensor]:
        return self.transform(self.pictures[number])


def _batches(run: Run, transform: Callable[[Image.Image], list[Tensor]]) -> Iterator[list[Tensor]]:
    workers = cores() if run.device.type == "cuda" else 0
    loader = DataLoader(
        _Pictures(run.batch * (run.repeats + 1), transform),
        batch_size=run.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        for views in loader:
            yield [view.to(run.device) for view in views]


def _backbone(run: Run) -> nn.Module:
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Identity()
    return net.to(run.device)


def _update(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def _sgd(*nets: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([parameter for net in nets for parameter in net.parameters()], lr=0.06)


def _simclr(run: Run) -> Callable[[], None]:
    batches = _batches(run, SimCLRTransform(input_size=run.size))
    backbone, head = _backbone(run), SimCLRProjectionHead(WIDTH, WIDTH, DIM).to(run.device)
    criterion, optimiser = NTXentLoss(), _sgd(backbone, head)

    def step() -> None:
        first, second = next(batches)
        with run.autocast():
            loss = criterion(head(backbone(first)), head(backbone(second)))
        _update(loss, optimiser)

    return step


def _moco(run: Run) -> Callable[[], None]:
    batches = _batches(run, MoCoV2Transform(input_size=run.size))
    online = nn.Sequential(_backbone(run), MoCoProjectionHead(WIDTH, WIDTH, DIM).to(run.device))
    target = _frozen(online)
    criterion, optimiser = NTXentLoss(memory_bank_size=(QUEUE, DIM)).to(run.device), _sgd(online)

    def step() -> None:
        query, key = next(batches)
        update_momentum(online, target, MOMENTUM)
        with run.autocast():
            with torch.no_grad():
                keys = target(key)
            loss = criterion(online(query), keys)
        _update(loss, optimiser)

    return step


def _byol(run: Run) -> Callable[[], None]:
    transform = BYOLTransform(BYOLView1Transform(input_size=run.size), BYOLView2Transform(input_size=run.size))
    batches = _batches(run, transform)
    online = nn.Sequential(_backbone(run), BYOLProjectionHead(WIDTH, BYOL_HIDDEN, BYOL_DIM).to(run.device))
    target, predictor = _frozen(online), BYOLPredictionHead(BYOL_DIM, BYOL_HIDDEN, BYOL_DIM).to(run.device)
    criterion, optimiser = NegativeCosineSimilarity(), _sgd(online, predictor)

    def step() -> None:
        views = next(batches)
        update_momentum(online, target, MOMENTUM)
        with run.autocast():
            predictions = [predictor(online(view)) for view in views]
            with torch.no_grad():
                projections = [target(view) for view in views]
            loss = (criterion(predictions[0], projections[1]) + criterion(predictions[1], projections[0])) / 2
        _update(loss, optimiser)

    return step


def _frozen(net: nn.Module) -> nn.Module:
    target = copy.deepcopy(net)
    deactivate_requires_grad(target)
    return target


STEPS = {"simclr": _simclr, "mocov2": _moco, "byol": _byol}
