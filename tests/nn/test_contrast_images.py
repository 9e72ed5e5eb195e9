from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.nn.contrast_images import barlow_twins, nt_xent, pair_logs, queue_nce, sup_con, vicreg_terms
from anaus_bench.nn.queue import Queue


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=generator)
    return first, second


def unit_rows(*views: Tensor) -> list[list[float]]:
    return [(row / row.norm()).tolist() for view in views for row in view.double()]


def dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def sup_con_loop(first: Tensor, second: Tensor, labels: list[int], temperature: float) -> list[float]:
    """Loss of each of the 2B rows, by its equation."""
    rows, count = unit_rows(first, second), len(first)
    ids = [label if label >= 0 else -1 - number for number, label in enumerate(labels)] * 2
    losses = []
    for i in range(2 * count):
        others = [a for a in range(2 * count) if a != i]
        positives = [p for p in others if ids[p] == ids[i]]
        denominator = sum(math.exp(dot(rows[i], rows[a]) / temperature) for a in others)
        logs = [dot(rows[i], rows[p]) / temperature - math.log(denominator) for p in positives]
        losses.append(-sum(logs) / len(positives))
    return losses


def test_nt_xent_is_its_equation_and_does_not_depend_on_the_order_of_the_views(pair: tuple[Tensor, Tensor]) -> None:
    first, second = pair
    expected = sum(sup_con_loop(first, second, [-1] * 5, 0.3)) / 10

    assert nt_xent(first, second, 0.3).item() == pytest.approx(expected, rel=1e-5)
    assert nt_xent(second, first, 0.3).item() == pytest.approx(expected, rel=1e-5)
    assert nt_xent(3 * first, second, 0.3).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "temperature"), [(3, 0.5), (6, 0.1)])
def test_nt_xent_of_orthogonal_pairs_with_equal_views_is_known(count: int, temperature: float) -> None:
    rows = torch.eye(count)

    expected = math.log(1 + (2 * count - 2) * math.exp(-1 / temperature))
    assert nt_xent(rows, rows, temperature).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 0], [0, -1, 0, -1, 1], [2, 2, 2, 2, 2]])
def test_sup_con_is_its_equation(pair: tuple[Tensor, Tensor], labels: list[int]) -> None:
    losses = sup_con(*pair, torch.tensor(labels), 0.5)

    assert losses.flatten().tolist() == pytest.approx(sup_con_loop(*pair, labels, 0.5), rel=1e-5)


def test_sup_con_without_labels_is_nt_xent(pair: tuple[Tensor, Tensor]) -> None:
    losses = sup_con(*pair, torch.full((5,), -1), 0.2)

    assert losses.mean().item() == pytest.approx(NTXentLoss(0.2)(*pair).item(), rel=1e-5)


def test_sup_con_of_equal_embeddings_is_a_guess_among_all_others_and_pulls_nowhere() -> None:
    rows = torch.ones(4, 3, requires_grad=True)

    loss = sup_con(rows, rows, torch.zeros(4, dtype=torch.long), 0.01).mean()
    loss.backward()

    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)
    assert rows.grad is not None
    assert rows.grad.abs().max() < 1e-4


def test_queue_contrast_is_its_equation_and_that_of_lightly(pair: tuple[Tensor, Tensor]) -> None:
    queries, keys = pair[0], F.normalize(pair[1], dim=1)
    negatives = F.normalize(torch.randn(6, 7, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = 0.0
    for query, key in zip(unit_rows(queries), unit_rows(keys), strict=True):
        positive = math.exp(dot(query, key) / 0.2)
        others = sum(math.exp(dot(query, negative) / 0.2) for negative in unit_rows(negatives))
        expected -= math.log(positive / (positive + others)) / 5
    reference = NTXentLoss(0.2, memory_bank_size=(6, 7))
    reference.memory_bank.bank.copy_(negatives)

    loss = queue_nce(queries, keys, negatives, 0.2)

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(reference(queries, keys).item(), rel=1e-5)


def vicreg_loop(first: list[list[float]], second: list[list[float]], weights: list[float]) -> tuple[float, ...]:
    count, dim = len(first), len(first[0])
    invariance = sum(
        weights[n] * (first[n][d] - second[n][d]) ** 2 / dim / count for n in range(count) for d in range(dim)
    )
    variance = covariance = 0.0
    for view in (first, second):
        means = [sum(row[d] for row in view) / count for d in range(dim)]
        matrix = [
            [sum((row[d] - means[d]) * (row[e] - means[e]) for row in view) / (count - 1) for e in range(dim)]
            for d in range(dim)
        ]
        variance += sum(max(0.0, 1 - math.sqrt(matrix[d][d] + 1e-4)) for d in range(dim)) / dim / 2
        covariance += sum(matrix[d][e] ** 2 for d in range(dim) for e in range(dim) if d != e) / dim
    return invariance, variance, covariance


def test_vicreg_terms_are_their_equations_and_those_of_lightly(pair: tuple[Tensor, Tensor]) -> None:
    first, second = 0.5 * pair[0], 0.5 * pair[1]
    weights = torch.tensor([1.0, 0.5, 0.25, 0.75, 1.0])

    plain = [term.item() for term in vicreg_terms(first, second)]
    weighted = [term.item() for term in vicreg_terms(first, second, weights)]

    rows = first.double().tolist(), second.double().tolist()
    assert plain == pytest.approx(vicreg_loop(*rows, [1.0] * 5), rel=1e-5)
    assert weighted == pytest.approx(vicreg_loop(*rows, weights.tolist()), rel=1e-5)
    assert 25 * plain[0] + 25 * plain[1] + plain[2] == pytest.approx(VICRegLoss()(first, second).item(), rel=1e-5)


def test_barlow_twins_equals_lightly_but_for_the_unbiased_variance(pair: tuple[Tensor, Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 400, 5, generator=generator)
    expected = BarlowTwinsLoss(0.005)(first, second).item()
    assert barlow_twins(first, second, 0.005).item() == pytest.approx(expected, rel=0.02)
    assert barlow_twins(*pair, 0.005).item() == pytest.approx(barlow_twins(*pair, 0.005, torch.ones(5)).item())


def test_weighted_barlow_twins_is_its_equation(pair: tuple[Tensor, Tensor]) -> None:
    weights = [1.0, 0.5, 0.25, 0.0, 1.0]
    used, total = 4, sum(weights)
    views = []
    for view in pair:
        rows = view.double().tolist()
        means = [sum(w * row[d] for w, row in zip(weights, rows, strict=True)) / total for d in range(7)]
        variances = [
            sum(w * (row[d] - means[d]) ** 2 for w, row in zip(weights, rows, strict=True))
            * used
            / ((used - 1) * total)
            for d in range(7)
        ]
        views.append([[(row[d] - means[d]) / math.sqrt(variances[d] + 1e-5) for d in range(7)] for row in rows])
    expected = 0.0
    for d in range(7):
        for e in range(7):
            entry = sum(views[0][n][d] * views[1][n][e] for n in range(5)) / 5
            expected += (entry - 1) ** 2 if d == e else 0.005 * entry**2

    assert barlow_twins(*pair, 0.005, torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-4)


def test_all_losses_are_float32_under_autocast(pair: tuple[Tensor, Tensor]) -> None:
    def losses() -> list[Tensor]:
        labels, keys = torch.tensor([0, 0, 1, -1, 1]), F.normalize(pair[1], dim=1)
        return [
            nt_xent(*pair, 0.1),
            sup_con(*pair, labels, 0.1).mean(),
            queue_nce(pair[0], keys, keys, 0.1),
            *vicreg_terms(*pair),
            barlow_twins(*pair, 0.005),
        ]

    expected = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses()

    assert all(loss.dtype == torch.float32 for loss in found)
    assert [loss.item() for loss in found] == [loss.item() for loss in expected]


def test_pair_logs_of_equal_orthogonal_rows() -> None:
    logs = pair_logs(torch.eye(4), 2 * torch.eye(4))

    assert logs["positive_cosine"].item() == 1
    assert logs["contrast_top1"].item() == 1
    assert logs["projection_std"].item() == pytest.approx(math.sqrt(1 / 4 - 1 / 16))


@pytest.mark.parametrize(("size", "batch"), [(6, 3), (7, 3), (4, 6)])
def test_a_queue_holds_the_last_keys_in_order_and_wraps(size: int, batch: int) -> None:
    queue = Queue(size, 2)
    written: list[float] = []

    for number in range(5):
        rows = torch.arange(batch * number, batch * (number + 1)).float()
        queue.enqueue(rows[:, None].expand(-1, 2))
        written += rows.tolist()
        kept = min(size, len(written))
        # At most `size` rows of one write count.
        order = (torch.arange(size) + queue.pointer) % size
        assert queue.keys[order][-kept:, 0].tolist() == written[-kept:]


def test_a_queue_starts_with_unit_rows_and_survives_saving() -> None:
    queue, other = Queue(5, 3), Queue(5, 3)
    queue.enqueue(torch.eye(3)[:2])

    other.load_state_dict(queue.state_dict())

    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(5))
    assert torch.equal(other.keys, queue.keys)
    assert other.pointer == 2
