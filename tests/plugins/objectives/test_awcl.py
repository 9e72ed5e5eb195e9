from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.errors import DataError, SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.contrast_images import sup_con
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.awcl import AWCL, AWCLSettings, Gamma, Granularity, anatomies

PATTERN = AWCLSettings().view_pattern


@pytest.fixture
def objective() -> AWCL:
    torch.set_num_threads(1)
    return AWCL(resolve(AWCLSettings, "objective", "tiny"))


@pytest.fixture
def nets(objective: AWCL) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18")).eval()


@pytest.fixture
def corpus() -> PackedCorpus:
    """A lung clip of three frames with a label, and two views of a heart with six frames each."""
    clips = [("butterfly", "Cov_1", 3, 1), ("camus", "patient0001_2CH", 6, -1), ("camus", "patient0001_4CH", 6, -1)]
    entries = tuple(
        Entry(f"{video}#{frame}", dataset, "g", label, video, frame, None, (0, 0, 8, 8))
        for dataset, video, frames, label in clips
        for frame in range(frames)
    )
    classes = ("butterfly:regular", "butterfly:covid")
    return PackedCorpus(np.zeros((15, 8, 8), dtype=np.uint8), None, entries, (), {}, classes, False)


def test_it_keeps_the_contract(objective: AWCL) -> None:
    check_objective(objective)


def test_gamma_raises_each_image_to_its_exponent() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(500, 1, 4, 4, generator=generator)

    exponents = Gamma(0.25).draw(500, generator, 4)

    assert 0.75 <= exponents.min() < 0.76 and 1.24 < exponents.max() <= 1.25
    assert torch.allclose(Gamma(0.25).apply(images, exponents)[7], images[7] ** exponents[7])


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("organ", ["butterfly"] * 3 + ["camus"] * 12),
        ("view", ["butterfly"] * 3 + ["camus 2CH"] * 6 + ["camus 4CH"] * 6),
        (
            "phase",
            ["butterfly"] * 3
            + ["camus 2CH diastole"] * 2
            + [None] * 2
            + ["camus 2CH systole"] * 2
            + ["camus 4CH diastole"] * 2
            + [None] * 2
            + ["camus 4CH systole"] * 2,
        ),
        ("class", ["butterfly:covid"] * 3 + [None] * 12),
    ],
)
def test_anatomies_at_each_granularity(
    corpus: PackedCorpus, granularity: Granularity, expected: list[str | None]
) -> None:
    assert anatomies(corpus, granularity, PATTERN) == expected


def test_loss_is_sup_con_over_the_anatomies_of_the_batch(objective: AWCL, nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    first, second = (nets["projector"](nets["encoder"].vector(view)) for view in batch.views)

    loss, logs = objective.loss(nets, batch)

    assert loss.item() == pytest.approx(sup_con(first, second, batch.labels, 0.5).mean().item(), rel=1e-5)
    assert logs["known_anatomy"].item() == 1


def test_images_of_unknown_anatomy_have_their_other_view_alone(objective: AWCL, nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    first, second = (nets["projector"](nets["encoder"].vector(view)) for view in batch.views)

    loss, logs = objective.loss(nets, dataclasses.replace(batch, weights=torch.full((4,), -1.0)))

    assert loss.item() == pytest.approx(NTXentLoss(0.5)(first, second).item(), rel=1e-5)
    assert logs["known_anatomy"].item() == 0


def test_the_ratio_keeps_anatomies_by_clip() -> None:
    corpus = synthetic_corpus(80)
    objective = AWCL(resolve(AWCLSettings, "objective", "tiny", {"anatomy_ratio": 0.5}))

    draws = [objective.sampler(corpus, 80, seed).draw(0, 0.0) for seed in range(2)]

    for draw in draws:
        assert draw.weights is not None
        labels = torch.from_numpy(corpus.labels())[draw.images[:, 0]]
        known = draw.weights >= 0
        assert torch.equal(draw.weights[known].long(), labels[known])
        assert known.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_corpus_of_one_anatomy_is_refused(corpus: PackedCorpus) -> None:
    one = dataclasses.replace(corpus, images=corpus.images[:3], entries=corpus.entries[:3])

    with pytest.raises(DataError, match=r"needs at least 2 anatomies, the corpus has \['butterfly'\]"):
        AWCL(AWCLSettings()).sampler(one, 2, 0)


def test_a_pattern_must_be_a_regular_expression_with_one_group() -> None:
    for pattern in ("2CH", "(a)(b)", "("):
        with pytest.raises(SettingsError, match="view_pattern"):
            resolve(AWCLSettings, "objective", "paper", {"view_pattern": pattern})
