"""Vanilla SAM in everything mode, on a test network with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.nn.weights import SAM_VIT_B
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.sam import SAM, SAMSettings, _load, _tiny_sam


def tiny(**values: Any) -> SAM:
    return SAM(resolve(SAMSettings, "masks", "tiny", values))


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 255, (2, 1, 48, 64), generator=generator, dtype=torch.uint8)


def test_label_maps_have_contiguous_ids_and_are_the_same_twice(images: Tensor) -> None:
    first, second = tiny().segment(images), tiny().segment(images)

    assert first.shape == (2, 48, 64)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    for label_map in first:
        assert label_map.unique().tolist() == list(range(int(label_map.max()) + 1))


def test_segmenting_leaves_the_global_random_state_alone(images: Tensor) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    tiny().segment(images[:1])

    assert torch.equal(torch.rand(4), expected)


def test_proposals_are_masks_of_the_picture_without_its_black_margins(images: Tensor) -> None:
    letterboxed = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    letterboxed[:, :, 8:56] = images
    source = tiny(min_area=0.0, max_area=1.0)

    label_maps = source.segment(letterboxed)

    assert not label_maps[:, :8].any()
    assert not label_maps[:, 56:].any()
    assert label_maps.any()


def test_where_nothing_passes_the_thresholds_the_image_is_one_region(images: Tensor) -> None:
    assert not tiny(pred_iou_thresh=1.0, stability_score_thresh=1.0).segment(images).any()


def test_label_maps_hold_the_painted_proposals_of_the_generator(images: Tensor) -> None:
    source = tiny(max_structures=1, min_area=0.0, max_area=1.0)
    proposals = source._generator.generate(np.repeat(images[0, 0].numpy()[..., None], 3, axis=2))
    best = max(proposals, key=lambda proposal: proposal["predicted_iou"])["segmentation"]

    label_map = source.segment(images[:1])[0].numpy()

    assert ((label_map == 1) == best).all()


def test_random_weights_are_said_aloud() -> None:
    assert "random" in tiny().describe()["weights"]
    assert tiny().identity() == {}
    assert SAM(SAMSettings()).describe() == {}


def test_the_published_digest_stands_for_the_official_weights() -> None:
    assert SAM(SAMSettings()).identity() == {"weights": SAM_VIT_B.sha256}


def test_the_tiny_network_refuses_published_weights() -> None:
    with pytest.raises(SettingsError, match="weights: random"):
        resolve(SAMSettings, "masks", overrides={"size": "tiny"})


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found"):
        SAM(SAMSettings(weights=str(tmp_path / "sam.pth"))).identity()


def test_weights_load_tensor_by_tensor_and_those_of_another_model_are_refused() -> None:
    torch.manual_seed(1)
    state = _tiny_sam().state_dict()
    network = _tiny_sam()

    _load(network, state, "here.pth")

    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    del state["mask_decoder.iou_token.weight"]
    state["pos_embed"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="2 tensors are missing"):
        _load(network, state, "here.pth")
