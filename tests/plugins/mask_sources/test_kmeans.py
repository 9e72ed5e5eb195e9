"""The K-means mask source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from anaus_bench.errors import WeightsError
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.kmeans import KMeans, KMeansSettings, _texture


def texture(**values: object) -> KMeans:
    return KMeans(resolve(KMeansSettings, "masks", "tiny", values))


@pytest.fixture
def images() -> torch.Tensor:
    """(4, 1, 64, 64) uint8: speckle, dark in a disc."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 28) ** 2 < 15**2
    speckle = rng.rayleigh(1, (4, 64, 64)) * np.where(disc, 15, 90)
    return torch.from_numpy(speckle.clip(0, 255).astype(np.uint8))[:, None]


def check_contract(source: KMeans, images: torch.Tensor, k: int) -> torch.Tensor:
    maps = source.segment(images)
    assert maps.shape == (len(images), *images.shape[2:])
    assert maps.dtype == torch.uint8
    assert torch.equal(maps, source.segment(images))
    assert torch.equal(maps, torch.cat([source.segment(image[None]) for image in images.flip(0)]).flip(0))
    for one in maps:
        assert one.unique().tolist() == list(range(int(one.max()) + 1))
        assert one.max() < k
        assert torch.bincount(one.flatten().long()).min() >= 0.005 * one.numel()
    return maps


def test_texture_maps_keep_the_contract_whatever_the_batch(images: torch.Tensor) -> None:
    check_contract(texture(), images, k=8)


def test_a_dark_disc_does_not_share_its_clusters_with_the_bright_surround(images: torch.Tensor) -> None:
    maps = texture(k=4, superpixels=100).segment(images).numpy()

    rows, columns = np.mgrid[:64, :64]
    radius = np.hypot(rows - 32, columns - 28)
    for one in maps:
        inside, outside = (np.bincount(one[where], minlength=4) for where in (radius < 11, radius > 20))
        shared = np.minimum(inside / inside.sum(), outside / outside.sum()).sum()
        assert shared < 0.35


def test_a_constant_image_is_one_region() -> None:
    assert texture().segment(torch.full((1, 1, 32, 32), 7, dtype=torch.uint8)).max() == 0


def test_a_bright_line_in_black_is_one_region() -> None:
    image = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    image[..., 5, 4:20] = torch.arange(100, 116, dtype=torch.uint8)

    (label_map,) = texture().segment(image)

    assert torch.equal(label_map == label_map[5, 4], image[0, 0] > 0)


def test_two_flat_halves_and_a_non_square_image_are_clustered(images: torch.Tensor) -> None:
    halves = torch.zeros(1, 1, 32, 48, dtype=torch.uint8)
    halves[..., 24:] = 200

    maps = check_contract(texture(k=2), halves, k=2)

    assert maps.max() == 1


def test_ids_go_by_area_and_black_margins_are_one_region_of_their_own(images: torch.Tensor) -> None:
    framed = torch.zeros(1, 1, 100, 80, dtype=torch.uint8)
    framed[..., 20:84, 8:72] = images[0].clamp(min=1)

    (alone,) = texture().segment(images[:1].clamp(min=1))
    (within,) = texture().segment(framed)

    areas = torch.bincount(within.flatten()).tolist()
    assert areas == sorted(areas, reverse=True)
    (margin,) = within[:20].unique().tolist()
    assert (within == margin).sum() == 100 * 80 - 64 * 64
    inside = within[20:84, 8:72].long()
    assert len(torch.stack([inside, alone.long()]).flatten(1).unique(dim=1).T) == int(alone.max()) + 1


def test_small_clusters_join_the_nearest_centre() -> None:
    points = np.array([[0.0, 0.0], [0.0, 0.1], [1.0, 0.0], [1.0, 0.1], [0.8, 0.0]])
    areas = np.array([500.0, 400.0, 500.0, 400.0, 3.0], np.float32)

    clusters = texture(k=3)._cluster(points, areas, seed=0)

    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    assert clusters[4] == clusters[2]


def test_texture_is_the_statistics_of_each_superpixel_standardised() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6)).astype(np.uint8)
    superpixels = np.repeat(np.arange(3), 12).reshape(6, 6)
    members = torch.nn.functional.one_hot(torch.from_numpy(superpixels)).permute(2, 0, 1).float()

    features = _texture(pixels, members).numpy()

    gray = pixels / 255
    down, right = np.gradient(gray)
    rows = []
    for index in range(3):
        own = superpixels == index
        y, x = np.nonzero(own)
        rows.append([gray[own].mean(), gray[own].std(), np.hypot(down, right)[own].mean(), y.mean() / 5, x.mean() / 5])
    expected = np.array(rows)
    expected = (expected - expected.mean(0)) / np.maximum(expected.std(0, ddof=1), 1e-6)
    np.testing.assert_allclose(features[:, :4], expected[:, :4], rtol=1e-3, atol=1e-4)


def test_imagenet_features_come_from_the_weights_file(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    source = KMeans(KMeansSettings(weights=str(path), superpixels=40))

    check_contract(source, images[:2], k=8)

    assert len(source.identity()["weights"]) == 64
    assert source.describe() == {}


def test_absent_weights_are_refused_and_texture_is_said_aloud(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="ImageNet weights of resnet18"):
        KMeans(KMeansSettings(weights=str(tmp_path / "none.pth"))).identity()
    assert "not ImageNet" in texture().describe()["features"]
    assert texture().identity() == {}
