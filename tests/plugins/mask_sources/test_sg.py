"""Semantic groups: regions are what the prototypes of a trained SlotCon win."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from anaus_bench.errors import SettingsError
from anaus_bench.kit.synthetic import silent_context, synthetic_corpus
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.sg import SG, SGSettings


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    context = silent_context(tmp_path_factory.mktemp("sg"))
    return SG(resolve(SGSettings, "masks", "tiny")).fit(synthetic_corpus(8), context)


def ready(state: dict[str, torch.Tensor], **settings: object) -> SG:
    source = SG(resolve(SGSettings, "masks", "tiny", settings))
    source.load(state, (), torch.device("cpu"))
    return source


def images() -> torch.Tensor:
    return torch.from_numpy(synthetic_corpus(4).images)[:, None]


def test_a_pixel_belongs_to_the_prototype_of_highest_cosine(state: dict[str, torch.Tensor]) -> None:
    source = ready(state, min_area=0.0, side=64)
    assert source._nets is not None

    maps = source.segment(images())

    for image, found in zip(images(), maps, strict=True):
        inputs = (image.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        with torch.no_grad():
            cells = source._nets["projector"](source._nets["encoder"].stages(inputs[None])[-1])[0]
        prototypes = source._nets["prototypes"].weight
        cosine = torch.stack(
            [F.cosine_similarity(cells, prototype[:, None, None], dim=0) for prototype in prototypes.detach()]
        )
        winners = F.interpolate(cosine[None], size=image.shape[-2:], mode="bilinear")[0].argmax(dim=0)
        same = winners.flatten()[:, None] == winners.flatten()
        assert torch.equal(found.flatten()[:, None] == found.flatten(), same)


def test_small_groups_give_their_pixels_to_the_next_best() -> None:
    source = SG(resolve(SGSettings, "masks", "tiny", {"min_area": 0.2}))
    scores = torch.zeros(3, 8, 8)
    scores[0, :, :4], scores[1, :, 4:] = 1.0, 1.0
    scores[2, 0, 4:6] = 2.0  # two of 64 cells, whose second best is 1

    label_map = source._label(scores, torch.Size((8, 8)))

    assert torch.equal(label_map, (torch.arange(8) >= 4).to(torch.uint8).expand(8, 8))


def test_an_image_of_small_groups_alone_keeps_its_largest() -> None:
    source = SG(resolve(SGSettings, "masks", "tiny", {"min_area": 0.9}))

    scores = torch.eye(3)[:, [0, 0, 1, 2]][:, :, None].expand(3, 4, 4)  # rows 0 and 1, row 2, row 3

    label_map = source._label(scores, torch.Size((4, 4)))

    assert not label_map.any()


def test_it_is_fitted_on_the_corpus_itself_and_evaluated_without_noise(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = ready(state)

    assert source.needs_fit and source.paired_corpora() == ""
    again = SG(resolve(SGSettings, "masks", "tiny")).fit(synthetic_corpus(8), silent_context(tmp_path))
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert not any(module.training for module in source._nets.modules())  # type: ignore[union-attr]


def test_more_prototypes_than_ids_are_refused() -> None:
    with pytest.raises(SettingsError, match="exceeds the 256 ids"):
        resolve(SGSettings, "masks", "tiny", {"slotcon": {"num_prototypes": 300}})
