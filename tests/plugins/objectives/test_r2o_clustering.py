from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from anaus_plugins.objectives.r2o.clustering import kmeans, superpixels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 5, each: int = 20) -> tuple[Tensor, Tensor]:
    centres = 10 * torch.randn(count, 6, generator=seeded())
    truth = torch.arange(count).repeat_interleave(each)
    return centres[truth] + 0.1 * torch.randn(count * each, 6, generator=seeded(1)), truth


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_recovers_separated_blobs(seed: int) -> None:
    points, truth = blobs()

    labels = kmeans(points, 5, seeded(seed))

    for number in range(5):
        assert len(labels[truth == number].unique()) == 1
    assert len(labels.unique()) == 5


def test_kmeans_ends_where_no_point_is_nearer_to_another_mean() -> None:
    points = torch.rand(200, 3, generator=seeded())

    labels = kmeans(points, 7, seeded(1))

    means = torch.stack([points[labels == number].double().mean(dim=0) for number in range(7)])
    for point, label in zip(points.double(), labels.tolist(), strict=True):
        distances = [(point - mean).square().sum().item() for mean in means]
        assert distances[label] <= min(distances) + 1e-6


def test_kmeans_is_about_as_good_as_scikit_learn() -> None:
    points = torch.rand(300, 4, generator=seeded())

    labels = kmeans(points, 8, seeded(2))

    means = torch.stack([points[labels == number].mean(dim=0) for number in range(8)])
    inertia = (points - means[labels]).square().sum().item()
    assert inertia <= 1.1 * KMeans(8, n_init=4, random_state=0).fit(points.numpy()).inertia_


@pytest.mark.parametrize("count", [1, 3, 6])
def test_kmeans_of_equal_points_is_finite_and_needs_no_more_clusters_than_there_are(count: int) -> None:
    labels = kmeans(torch.ones(6, 3), count, seeded())

    assert labels.shape == (6,)
    assert labels.unique().tolist() == [0]


def test_kmeans_is_a_function_of_its_generator() -> None:
    points = torch.rand(100, 3, generator=seeded())

    assert torch.equal(kmeans(points, 9, seeded(3)), kmeans(points, 9, seeded(3)))


def slow_superpixels(image: Tensor, grid: int, compactness: float, iterations: int) -> list[list[int]]:
    side = image.shape[-1]
    gray = (image.double() * 100 / 255).tolist()
    scale = compactness * grid / side
    home = [y * grid // side for y in range(side)]
    labels = [[home[y] * grid + home[x] for x in range(side)] for y in range(side)]
    for _ in range(iterations):
        sums = [[0.0, 0.0, 0.0, 0] for _ in range(grid**2)]
        for y in range(side):
            for x in range(side):
                cluster = sums[labels[y][x]]
                for axis, value in enumerate((gray[y][x], scale * y, scale * x)):
                    cluster[axis] += value
                cluster[3] += 1
        for y in range(side):
            for x in range(side):
                best = (float("inf"), -1)
                for row in range(max(0, home[y] - 1), min(grid, home[y] + 2)):
                    for column in range(max(0, home[x] - 1), min(grid, home[x] + 2)):
                        number = row * grid + column
                        *total, count = sums[number]
                        if count:
                            g, v, h = (value / count for value in total)
                            distance = (gray[y][x] - g) ** 2 + (scale * y - v) ** 2 + (scale * x - h) ** 2
                            best = min(best, (distance, number))
                labels[y][x] = best[1]
    return labels


def test_superpixels_are_slic_written_as_loops() -> None:
    images = torch.randint(0, 256, (2, 1, 16, 16), generator=seeded(), dtype=torch.uint8)

    labels = superpixels(images, grid=4, compactness=10, iterations=3)

    for image, label_map in zip(images, labels, strict=True):
        assert label_map.tolist() == slow_superpixels(image[0], 4, 10, 3)


def test_superpixels_of_a_constant_image_are_the_grid() -> None:
    labels = superpixels(torch.full((1, 1, 40, 40), 7, dtype=torch.uint8), grid=10)

    along = torch.arange(40) // 4
    assert torch.equal(labels[0].long(), along[:, None] * 10 + along)


def test_superpixels_keep_to_strong_edges() -> None:
    images = torch.zeros(1, 1, 60, 60, dtype=torch.uint8)
    images[..., 23:] = 200

    labels = superpixels(images, grid=6)[0]

    assert not set(labels[:, :23].unique().tolist()) & set(labels[:, 23:].unique().tolist())


def test_superpixels_of_an_image_do_not_depend_on_its_batch() -> None:
    images = torch.randint(0, 256, (3, 1, 32, 32), generator=seeded(), dtype=torch.uint8)

    assert torch.equal(superpixels(images, grid=5)[1:2], superpixels(images[1:2], grid=5))
