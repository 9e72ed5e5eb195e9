"""With two processes, the means of losses and gradients are those of one process on the whole batch; so are draws."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.distributed.group import gather_rows, rand_rows
from anaus_bench.nn.contrast import detcon_nce, region_nce
from anaus_bench.nn.contrast_images import barlow_twins, nt_xent, queue_nce, sup_con, vicreg_terms
from anaus_bench.nn.distillation import CentredTargets
from anaus_bench.nn.queue import Queue
from anaus_bench.nn.slots import grouping_loss, slot_contrast
from anaus_plugins.objectives.anaus.damage import damage
from anaus_plugins.objectives.uscl import labelled_entropy
from anaus_plugins.objectives.usucl import synthetic_negatives

PROCESSES, BATCH, DIM = 2, 4, 6
LABELS = torch.tensor([0, 1, -1, 0, 1, 0, -1, -1])
WEIGHTS = torch.linspace(0.2, 1.0, PROCESSES * BATCH)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _queue(first: Tensor, second: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return queue_nce(first, F.normalize(second.detach(), dim=1), torch.eye(DIM), 0.2)


def _synthetic(first: Tensor, second: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    memory, start = gather_rows(F.normalize(second.detach(), dim=1)[:, None])
    return synthetic_negatives(F.normalize(first, dim=1), memory, 3, 0.07, start).square().sum(dim=1).mean()


def _regions(nce: Callable[..., Tensor]) -> Loss:
    """Two regions per image; those of unlabelled images have no positive."""

    def loss(first: Tensor, second: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        targets, start = gather_rows(second.detach().unflatten(1, (2, 3)))
        own, other = torch.stack([labels, labels + 5], dim=1), torch.stack([labels.abs(), labels + 5], dim=1)
        return nce(first.unflatten(1, (2, 3)), targets[None], own, gather_rows(other)[0][None], 0.2, start)

    return loss


def _grouping(first: Tensor, second: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    targets = second.detach().softmax(dim=1)[:, None, None]
    return grouping_loss(first[:, :, None, None], targets, (labels >= 0).float(), 0.1)


def _slots(first: Tensor, second: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    anchors = torch.stack([labels >= 0, labels > -2], dim=1)
    slots, targets = first.unflatten(1, (2, 3)), second.detach().unflatten(1, (2, 3))
    return slot_contrast(nn.Identity(), slots, targets, anchors, torch.ones_like(anchors), 0.2)


LOSSES: dict[str, Loss] = {
    "region_nce": _regions(region_nce),
    "detcon_nce": _regions(detcon_nce),
    "grouping": _grouping,
    "slot_contrast": _slots,
    "labelled_entropy": lambda first, second, labels, weights: labelled_entropy(first, labels),
    "nt_xent": lambda first, second, labels, weights: nt_xent(first, second, 0.2),
    "sup_con": lambda first, second, labels, weights: sup_con(first, second, labels, 0.5).mean(),
    "weighted": lambda first, second, labels, weights: (weights * sup_con(first, second, labels, 0.5).sum(0)).mean(),
    "queue_nce": _queue,
    "vicreg": lambda first, second, labels, weights: torch.stack(vicreg_terms(first, second, weights)).sum(),
    "barlow_twins": lambda first, second, labels, weights: barlow_twins(first, second, 0.005, weights),
    "synthetic": _synthetic,
}


def results(rows: slice) -> dict[str, Tensor]:
    """Loss and gradient of a linear map of each method, on these rows of the whole batch; then the shared state."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, PROCESSES * BATCH, DIM, generator=generator)
    weight = torch.randn(DIM, DIM, generator=generator)
    found = {}
    for name, loss in LOSSES.items():
        parameter = weight.clone().requires_grad_()
        first, second = inputs[:, rows] @ parameter
        value = loss(first, second, LABELS[rows], WEIGHTS[rows])
        value.backward()
        found[f"{name} loss"], found[f"{name} gradient"] = value.detach(), parameter.grad
    queue, targets = Queue(10, DIM), CentredTargets(DIM, 0.04, 0.9)
    queue.keys.zero_()
    queue.enqueue(gather_rows(inputs[0, rows])[0])
    targets.update(inputs[:, rows])
    images = torch.rand(PROCESSES * BATCH, 1, 8, 8, generator=generator)[rows]
    found["draws of rows"] = rand_rows(len(images), 3, generator=torch.Generator().manual_seed(1))
    found["damage of rows"] = damage(images, patch=4, shuffle=0.5, noise=0.1, occlusion=0.2, seed=2)
    return {**found, "queue": queue.keys, "pointer": queue.pointer.float(), "centre": targets.centre}


def work(rank: int, folder: str) -> None:
    """One process of the group; its results are saved as `<rank>.pt`."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=5))
    try:
        torch.save(results(slice(rank * BATCH, (rank + 1) * BATCH)), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(target=work, args=(1, str(tmp_path)))
    other.start()
    work(0, str(tmp_path))
    other.join()

    assert other.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for name, expected in results(slice(None)).items():
        found = torch.stack([part[name] for part in parts])
        if name.endswith("of rows"):
            assert torch.equal(found.flatten(0, 1), expected), name
            continue
        if name in ("queue", "pointer", "centre"):
            assert torch.equal(found[0], found[1]), name
        assert torch.allclose(found.mean(dim=0), expected, atol=1e-5, rtol=1e-4), name
