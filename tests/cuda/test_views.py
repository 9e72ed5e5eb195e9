"""Views made on the device are those of the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.view import Blur, Jitter, Solarise, View
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_plugins.objectives.awcl import Gamma
from anaus_plugins.objectives.fixmatch.operations import CutOut, Translate
from tests.cuda.conftest import CPU

pytestmark = pytest.mark.cuda

GRAY_LEVEL = 1 / 255 / 0.225  # of an 8-bit image, in the units of normalised views
PLAIN = View(48)


def on_both(recipe: View, device: torch.device) -> tuple[Batch, Batch]:
    corpus = synthetic_corpus(8)
    arguments = (corpus.images, corpus.truth, corpus.boxes(), corpus.labels(), torch.arange(8), (recipe,), 0, 0)
    return make_batch(*arguments, device=CPU), make_batch(*arguments, device=device)


def test_draws_and_label_maps_are_the_same_on_every_device(device: torch.device) -> None:
    expected, found = on_both(replace(PLAIN, operations=(Jitter(), Blur())), device)

    assert torch.equal(found.crops[0].box, expected.crops[0].box)
    for drawn, again in zip(found.photometry[0], expected.photometry[0], strict=True):
        assert torch.equal(drawn, again)
    assert found.label_maps[0].device == device
    assert torch.equal(found.label_maps[0].cpu(), expected.label_maps[0])


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        replace(PLAIN, interpolation="bilinear"),
        replace(PLAIN, operations=(Jitter(1.0),)),
        replace(PLAIN, operations=(Blur(1.0),)),
        replace(PLAIN, operations=(Translate(0.1), Gamma(0.3), CutOut(0.3))),
    ],
    ids=["bicubic", "bilinear", "jitter", "blur", "shift"],
)
def test_views_are_within_a_twentieth_of_a_gray_level_of_the_cpu_s(recipe: View, device: torch.device) -> None:
    expected, found = on_both(recipe, device)

    assert found.views[0].device == device
    torch.testing.assert_close(found.views[0].cpu(), expected.views[0], rtol=0, atol=GRAY_LEVEL / 20)


def test_solarised_views_are_within_a_gray_level_of_the_cpu_s(device: torch.device) -> None:
    """A pixel at the threshold may fall on either side of it: 128 stays, or becomes 127."""
    expected, found = on_both(replace(PLAIN, operations=(Solarise(1.0),)), device)

    torch.testing.assert_close(found.views[0].cpu(), expected.views[0], rtol=0, atol=1.05 * GRAY_LEVEL)
