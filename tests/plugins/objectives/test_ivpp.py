from __future__ import annotations

import dataclasses

import pytest
import torch
from lightly.loss import NTXentLoss, VICRegLoss
from torch import Tensor, nn

from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.contrast_images import barlow_twins, sup_con, vicreg_terms
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.ivpp import IVPP, IVPPSettings, near_pair, pair_weights


def make(**values: object) -> IVPP:
    torch.set_num_threads(1)
    return IVPP(resolve(IVPPSettings, "objective", "tiny", values))


def build(objective: IVPP) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18")).eval()


@pytest.mark.parametrize("base", ["simclr", "vicreg", "barlow"])
def test_it_keeps_the_contract(base: str) -> None:
    check_objective(make(base=base))


@pytest.mark.parametrize("base", ["simclr", "vicreg", "barlow"])
def test_loss_weighs_the_pairs(base: str) -> None:
    objective = make(base=base)
    nets, weights = build(objective), torch.tensor([1.0, 0.5, 0.25, 0.75])
    batch = dataclasses.replace(synthetic_batch(objective, size=32, images=4), weights=weights)
    first, second = (nets["projector"](nets["encoder"].vector(view)) for view in batch.views)

    loss, logs = objective.loss(nets, batch)

    if base == "simclr":
        rows = sup_con(first, second, torch.full((4,), -1), 0.1)
        expected = sum(w * (a + b) for w, a, b in zip(weights, *rows, strict=True)) / 4
    elif base == "vicreg":
        invariance, variance, covariance = vicreg_terms(first, second, weights)
        expected = 25 * invariance + 25 * variance + covariance
    else:
        expected = barlow_twins(first, second, 0.005, weights)
    assert loss.item() == pytest.approx(float(expected.detach()), rel=1e-4)
    assert logs["pair_weight"].item() == 0.625


def test_unweighted_losses_are_those_of_lightly() -> None:
    def loss_and_rows(base: str) -> tuple[float, list[Tensor]]:
        objective = make(base=base, weighted=False)
        nets, batch = build(objective), synthetic_batch(objective, size=32, images=4)
        rows = [nets["projector"](nets["encoder"].vector(view)) for view in batch.views]
        return objective.loss(nets, batch)[0].item(), rows

    contrast, rows = loss_and_rows("simclr")
    assert contrast == pytest.approx(2 * NTXentLoss(0.1)(*rows).item(), rel=1e-4)
    variance, rows = loss_and_rows("vicreg")
    assert variance == pytest.approx(VICRegLoss()(*rows).item(), rel=1e-4)


def test_weights_fall_linearly_and_are_never_zero() -> None:
    frames, reach = torch.tensor([[5, 5], [5, 8], [8, 3], [0, 0]]), torch.tensor([5, 5, 5, 0])

    assert pair_weights(frames, reach).tolist() == pytest.approx([1.0, 3 / 6, 1 / 6, 1.0])


def test_pairs_lie_in_the_clip_and_within_reach() -> None:
    lengths = torch.tensor([1, 4, 30]).repeat(1000)
    reach = torch.tensor([10, 2, 7]).repeat(1000)

    frames = near_pair(lengths, reach, torch.Generator().manual_seed(0))

    distance = (frames[:, 1] - frames[:, 0]).abs()
    assert (frames >= 0).all() and (frames < lengths[:, None]).all()
    assert (distance <= reach).all()
    assert [distance[i::3].max().item() for i in range(3)] == [0, 2, 7]
    assert [distance[i::3].min().item() for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"delta": 0.5, "delta_unit": "fraction"}, 2),
        ({"delta": 3, "delta_unit": "frames"}, 3),
        ({"delta": 1.5, "delta_unit": "seconds", "fps": {"synthetic": 2.0}}, 3),
    ],
)
def test_reach_in_each_unit(values: dict[str, object], expected: int) -> None:
    objective, corpus = make(**values), synthetic_corpus(40)
    sampler = objective.sampler(corpus, 8, 0)

    draws = [sampler.draw(step, 0.0) for step in range(40)]
    weights = torch.cat([draw.weights for draw in draws if draw.weights is not None])
    distances = torch.cat([(draw.images[:, 1] - draw.images[:, 0]).abs() for draw in draws])

    assert distances.max() == min(expected, 3)
    assert torch.allclose(weights, (expected - distances + 1) / (expected + 1))


def test_seconds_need_the_frame_rate_of_every_data_set() -> None:
    with pytest.raises(SettingsError, match=r"needs the frame rate of synthetic; .* --set objective.fps.synthetic="):
        make(delta_unit="seconds").sampler(synthetic_corpus(8), 4, 0)


def test_without_weighting_there_are_no_weights() -> None:
    assert make(weighted=False).sampler(synthetic_corpus(8), 4, 0).draw(0, 0.0).weights is None


def test_the_projector_has_768_units_and_no_last_bias() -> None:
    projector = IVPP(IVPPSettings()).build(Encoder("resnet18"))["projector"]

    assert projector[0].weight.shape == (768, 512)
    assert projector[3].weight.shape == (768, 768)
    assert projector[3].bias is None
