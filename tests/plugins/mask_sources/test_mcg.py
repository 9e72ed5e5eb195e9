"""MCG-style regions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from anaus_bench.errors import PluginError
from anaus_plugins.mask_sources import mcg
from anaus_plugins.mask_sources.mcg import MCG, MCGSettings


def segment(images: Tensor, **settings: Any) -> Tensor:
    pytest.importorskip("higra", reason="needs the package higra")
    return MCG(MCGSettings(**settings)).segment(images)


@pytest.fixture
def speckle() -> Tensor:
    """(1, 1, 64, 96) uint8: Rayleigh speckle, log-compressed, brighter below."""
    amplitude = np.random.default_rng(0).rayleigh(1.0, (64, 96)) * np.linspace(1, 8, 64)[:, None]
    gray = np.clip(110 + 20 * np.log(ndimage.gaussian_filter(amplitude, 0.7)), 1, 255)
    return torch.from_numpy(gray.astype(np.uint8))[None, None]


@pytest.mark.parametrize("variant", ["ucm-sobel", "ucm-sobel-single"])
@pytest.mark.parametrize("regions", [1, 4, 16])
def test_regions_are_at_most_as_many_as_asked_and_none_is_small(speckle: Tensor, variant: str, regions: int) -> None:
    areas = torch.bincount(segment(speckle, variant=variant, regions=regions, min_area=0.01)[0].flatten().int())

    assert len(areas) <= regions
    assert areas.min() >= 0.01 * 64 * 96


def test_regions_are_connected(speckle: Tensor) -> None:
    label_map = segment(speckle)[0].numpy()

    assert all(ndimage.label(label_map == k)[1] == 1 for k in np.unique(label_map))


def test_fewer_regions_are_unions_of_more(speckle: Tensor) -> None:
    few, many = (segment(speckle, regions=count)[0] for count in (4, 12))

    for k in many.unique():
        assert len(few[many == k].unique()) == 1


def test_a_checkerboard_of_four_fields_is_recovered() -> None:
    field = torch.tensor([[60, 200], [200, 60]], dtype=torch.uint8).repeat_interleave(24, 0).repeat_interleave(30, 1)
    noise = torch.randint(0, 20, field.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    label_map = segment((field + noise)[None, None], regions=4)[0]

    assert len(label_map.unique()) == 4
    for rows in (slice(0, 21), slice(27, 48)):
        for columns in (slice(0, 27), slice(33, 60)):
            assert len(label_map[rows, columns].unique()) == 1


@pytest.mark.parametrize("variant", ["ucm-sobel", "ucm-sobel-single"])
def test_a_ramp_without_contours_is_one_region(variant: str) -> None:
    ramp = torch.arange(1, 65, dtype=torch.uint8).expand(1, 1, 48, 64)

    label_map = segment(ramp, variant=variant, sigma=0.0)[0]

    assert label_map.unique().tolist() == list(range(int(label_map.max()) + 1))


def test_three_scales_equal_the_published_combination_of_higra(speckle: Tensor) -> None:
    hg = pytest.importorskip("higra", reason="needs the package higra")
    picture = speckle[0, 0].numpy()
    graph = hg.get_4_adjacency_graph(picture.shape)
    fine, *others = (
        hg.weight_graph(graph, mcg.gradient(picture, scale, 2.0), hg.WeightFunction.mean) for scale in (2.0, 1.0, 0.5)
    )
    tree, altitudes = hg.multiscale_mean_pb_hierarchy(graph, fine, tuple(others))
    pixel_tree, pixel_altitudes = hg.bpt_canonical(graph, hg.saliency(tree, altitudes))
    filtered = hg.filter_small_nodes_from_tree(pixel_tree, pixel_altitudes, 0.0038 * picture.size)
    cut = hg.HorizontalCutExplorer(*filtered).horizontal_cut_from_num_regions(16, at_least=False)
    expected = cut.labelisation_leaves(filtered[0])

    label_map = segment(speckle)[0].numpy()

    pairs = set(zip(label_map.flat, expected.flat, strict=True))
    assert len(pairs) == len(np.unique(label_map)) == len(np.unique(expected))


def test_the_gradient_of_a_step_lies_on_the_step() -> None:
    step = np.full((32, 32), 10, dtype=np.uint8)
    step[:, 16:] = 200

    for scale in (2.0, 1.0, 0.5):
        strength = mcg.gradient(step, scale, 1.0)
        assert strength.shape == (32, 32)
        assert set(strength.argmax(axis=1)) <= {15, 16}


def test_it_says_that_it_is_not_the_published_mcg() -> None:
    assert "no structured forest" in " ".join(MCG(MCGSettings()).describe().values())


def test_without_higra_the_error_names_the_package(speckle: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "higra", None)

    with pytest.raises(PluginError, match="pip install higra"):
        MCG(MCGSettings()).segment(speckle)


@pytest.mark.data
def test_regions_of_breast_ultrasound_follow_lesions(data_root: Any) -> None:
    from PIL import Image

    folder: Path = data_root("busi_256")
    ious = []
    for number in (1, 50, 120, 200, 300, 400):
        path = next(folder.rglob(f"benign ({number}).png"))
        image = torch.from_numpy(np.array(Image.open(path).convert("L")))
        lesion = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.png")).convert("L")) > 0
        label_map = segment(image[None, None])[0].numpy()
        regions = [label_map == k for k in np.unique(label_map)]
        ious.append(max((region & lesion).sum() / (region | lesion).sum() for region in regions))

    assert np.median(ious) > 0.3
