from __future__ import annotations

import copy
import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch import nn
from torch.nn import functional as F

from anaus_bench.corpus.view import Blur, Solarise
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.distillation import CentredTargets, DINOHead, cross_view_entropy
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.dino import DINO, DINOSettings


@pytest.fixture
def objective() -> DINO:
    torch.set_num_threads(1)
    return DINO(resolve(DINOSettings, "objective", "tiny", {"frozen_prototypes": 0.1}))


@pytest.fixture
def nets(objective: DINO) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def train(objective: DINO, nets: nn.ModuleDict, steps: range) -> list[float]:
    weights = [value for name, value in nets.named_parameters() if not name.startswith("target")]
    optimiser = torch.optim.SGD(weights, lr=0.05)
    losses = []
    for step in steps:
        objective.before_forward(nets, step / 10)
        loss, _ = objective.loss(nets, synthetic_batch(objective, size=32, images=4, step=step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(nets, (step + 1) / 10)
        losses.append(loss.item())
    return losses


def test_it_keeps_the_contract(objective: DINO) -> None:
    check_objective(objective)


def test_cross_view_entropy_is_equation_3_and_that_of_lightly() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 3, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    targets = CentredTargets(5, 0.07, 0.9)
    targets.centre.copy_(torch.randn(5, generator=generator))
    reference = DINOLoss(5, teacher_temp=0.07, center_momentum=0.9)
    reference.center.copy_(targets.centre[None, None])

    def softmax(row: list[float]) -> list[float]:
        total = sum(math.exp(value) for value in row)
        return [math.exp(value) / total for value in row]

    expected = 0.0
    for g in range(2):
        for v in range(4):
            for b in range(3):
                if v != g:
                    p = softmax([(teacher[g, b, k] - targets.centre[k]).item() / 0.07 for k in range(5)])
                    q = softmax([student[v, b, k].item() / 0.1 for k in range(5)])
                    expected -= sum(p[k] * math.log(q[k]) for k in range(5)) / (6 * 3)
    loss = cross_view_entropy(targets(teacher), student, 0.1)
    targets.update(teacher)

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(reference(list(teacher), list(student)).item(), rel=1e-5)
    assert torch.allclose(targets.centre, reference.center[0, 0], atol=1e-6)


def test_the_head_gives_cosines_with_unit_prototypes_each_view_by_its_own_statistics() -> None:
    head = DINOHead(6, 8, 4, 10, norm=True)
    views = [torch.randn(20, 6), 3 * torch.randn(20, 6)]

    logits = head(views)

    assert logits.shape == (2, 20, 10)
    for view, found in zip(views, logits, strict=True):
        rows = head.layers(view)
        expected = torch.stack([F.cosine_similarity(rows, one[None], dim=1) for one in head.prototypes.weight], dim=1)
        assert torch.allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        head.prototypes.weight.mul_(3)
    assert torch.allclose(head(views), logits, atol=1e-6)


def test_only_the_student_sees_local_crops(objective: DINO, nets: nn.ModuleDict) -> None:
    objective.loss(nets, synthetic_batch(objective, size=32, images=4))

    assert nets["encoder"].backbone.bn1.num_batches_tracked == 3
    assert nets["target_encoder"].backbone.bn1.num_batches_tracked == 2


def test_crops_are_the_papers() -> None:
    views = DINO(DINOSettings()).views(224)

    assert [view.size for view in views] == [224, 224, *[96] * 8]
    assert [view.operations[1:] for view in views[:3]] == [(Blur(),), (Blur(0.1), Solarise(0.2)), (Blur(0.5),)]


def test_the_teachers_temperature_rises_linearly_and_stays() -> None:
    objective = DINO(DINOSettings(teacher_warmup=0.2))

    found = [objective.teacher_temperature(progress) for progress in (0.0, 0.1, 0.2, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert DINO(DINOSettings(teacher_warmup=0.0)).teacher_temperature(0.0) == 0.07


def test_prototypes_stay_at_first_and_the_teacher_takes_no_gradient(objective: DINO, nets: nn.ModuleDict) -> None:
    start = nets["head"].prototypes.weight.detach().clone()

    train(objective, nets, range(1))
    assert torch.equal(nets["head"].prototypes.weight, start)
    train(objective, nets, range(1, 2))
    assert not torch.equal(nets["head"].prototypes.weight, start)
    for name, parameter in nets.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_two_halves_of_a_run_equal_the_whole(objective: DINO, nets: nn.ModuleDict) -> None:
    first = copy.deepcopy(nets)
    losses = train(objective, nets, range(4))

    train(objective, first, range(2))
    second = objective.build(Encoder("resnet18"))
    second.load_state_dict(first.state_dict())

    assert train(objective, second, range(2, 4)) == losses[2:]
    assert all(torch.equal(nets.state_dict()[name], value) for name, value in second.state_dict().items())
