"""The phantom simulator: speckle statistics, levels, geometry, motion, and what must not give a class away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from anaus_bench.simulator import phantoms
from anaus_bench.simulator.breast import KINDS, Breast, draw_lesions
from anaus_bench.simulator.geometry import Array, Resampling, Sheet, convex, linear, scan_conversion, sector
from anaus_bench.simulator.phantoms import beam_grid, breast_clip, breast_clips, linear_scanner, scan, stream
from anaus_bench.simulator.physics import Scanner, Tissue, blur, decibel, echoes, reverberate, scatterers, shadow

GRID = (640, 384)


@pytest.fixture
def scanner() -> Scanner:
    return replace(linear_scanner(stream(0), GRID), axial_sigma=1.4, focal_sigma=1.2, far_sigma=1.2)


def uniform(level: Array | float = 0.0, density: float = 1.0) -> Tissue:
    zeros = np.zeros(GRID, dtype=np.float32)
    return Tissue(zeros.astype(np.uint8), zeros + np.float32(level), zeros, zeros + np.float32(density), zeros)


def speckle(tissue: Tissue, scanner: Scanner) -> Array:
    return blur(echoes(tissue, scatterers(stream(1), GRID)), scanner)


def envelope(tissue: Tissue, scanner: Scanner) -> Array:
    signal = speckle(tissue, scanner)
    return np.hypot(signal[0], signal[1])


def mean_level(values: Array) -> float:
    return float(10 * np.log10(np.mean(values.astype(np.float64) ** 2)))


def test_uniform_tissue_has_fully_developed_speckle(scanner: Scanner) -> None:
    values = envelope(uniform(), scanner).astype(np.float64)

    intensity = values**2
    assert values.mean() / values.std() == pytest.approx(1.913, abs=0.05)  # Rayleigh
    assert intensity.mean() ** 2 / intensity.var() == pytest.approx(1.0, abs=0.05)  # Nakagami m


def test_sparse_scatterers_are_sub_rayleigh_at_the_same_level(scanner: Scanner) -> None:
    dense, sparse = envelope(uniform(), scanner), envelope(uniform(density=0.05), scanner)

    assert mean_level(sparse) == pytest.approx(mean_level(dense), abs=0.3)
    intensity = sparse.astype(np.float64) ** 2
    assert intensity.mean() ** 2 / intensity.var() < 0.8


@pytest.mark.parametrize(("axis", "sigma"), [(1, 1.4), (2, 1.2)])
def test_autocorrelation_has_the_width_of_the_point_spread_function(axis: int, sigma: float, scanner: Scanner) -> None:
    signal = speckle(uniform(), scanner).astype(np.float64)

    for lag in range(1, 5):
        near = np.take(signal, range(signal.shape[axis] - lag), axis=axis)
        far = np.take(signal, range(lag, signal.shape[axis]), axis=axis)
        expected = math.exp(-(lag**2) / (4 * sigma**2))  # a Gaussian convolved with itself
        assert (near * far).mean() / (signal**2).mean() == pytest.approx(expected, abs=0.04)


def test_level_difference_of_two_regions_is_as_specified(scanner: Scanner) -> None:
    level = np.zeros(GRID, dtype=np.float32)
    level[:, GRID[1] // 2 :] = -12

    values = envelope(uniform(level), scanner)

    left, right = values[:, : GRID[1] // 2 - 10], values[:, GRID[1] // 2 + 10 :]
    assert mean_level(left) - mean_level(right) == pytest.approx(12, abs=1)


def test_widening_of_the_beam_away_from_the_focus_keeps_the_level(scanner: Scanner) -> None:
    values = envelope(uniform(), replace(scanner, far_sigma=3.0, focus=0.3))

    bands = [mean_level(band) for band in np.array_split(values, 8)]
    assert max(bands) - min(bands) < 1
    assert np.mean(bands) == pytest.approx(0, abs=0.3)


def test_shadow_is_the_attenuation_above_in_decibels() -> None:
    attenuation = np.full((100, 3), 20, dtype=np.float32)

    level = shadow(attenuation)

    np.testing.assert_allclose(level[:, 0], [-20 * (row + 1) / 100 for row in range(100)], rtol=1e-4)
    assert decibel(np.float32(-20) * np.ones(1, dtype=np.float32))[0] == pytest.approx(0.1, rel=1e-5)


def test_reverberations_are_the_sum_of_delayed_and_weaker_copies(scanner: Scanner) -> None:
    signal = stream(3).standard_normal((2, 50, 4), dtype=np.float32)
    expected = np.zeros_like(signal)
    for row in range(50):
        for k in range(row // 7 + 1):
            expected[:, row] += 0.4**k * signal[:, row - 7 * k]

    reverberate(signal, replace(scanner, echo=0.4, echo_depth=0.14))

    np.testing.assert_allclose(signal, expected, rtol=1e-4, atol=1e-5)


def test_resampling_interpolates_as_a_slow_loop() -> None:
    array = stream(4).random((9, 7), dtype=np.float32)
    rows, columns = stream(5).uniform(0, 7.9, 20).astype(np.float32), stream(6).uniform(0, 5.9, 20).astype(np.float32)

    values = Resampling(rows, columns, (9, 7)).linear(array)

    for row, column, value in zip(rows, columns, values, strict=True):
        r, c = int(row), int(column)
        weights = {
            (r, c): (1 - row + r) * (1 - column + c),
            (r, c + 1): (1 - row + r) * (column - c),
            (r + 1, c): (row - r) * (1 - column + c),
            (r + 1, c + 1): (row - r) * (column - c),
        }
        assert value == pytest.approx(sum(weight * array[place] for place, weight in weights.items()), abs=1e-5)


def test_mask_is_the_label_map_read_at_each_pixels_nearest_sample() -> None:
    size = 96
    grid = beam_grid((size, size))
    anatomy = Breast(stream(7), "malignant", grid)
    tissue, _ = anatomy.at(0)
    _, labels = scan(anatomy, linear_scanner(stream(8), grid), linear(), 1, (size, size), (9,))

    for row in range(size):
        for column in range(size):
            sample = math.floor((row + 0.5) / size * grid[0] - 0.5 + 0.5)
            line = math.floor((column + 0.5) / size * grid[1] - 0.5 + 0.5)
            assert labels[0, row, column] == tissue.labels[min(sample, grid[0] - 1), min(line, grid[1] - 1)]
    assert labels.any()


@pytest.mark.parametrize("geometry", [convex(60, 0.6), sector(80)])
def test_outside_the_beams_image_and_mask_are_zero(geometry: phantoms.Geometry) -> None:
    conversion = scan_conversion(geometry, (80, 48), (64, 64))

    picture = conversion.picture(np.full((80, 48), 200, dtype=np.float32))
    labels = conversion.label_map(np.full((80, 48), 3, dtype=np.uint8))

    assert set(np.unique(picture)) == {0, 200}
    assert set(np.unique(labels)) == {0, 3}
    np.testing.assert_array_equal(picture > 0, labels > 0)
    assert 0.3 < (picture > 0).mean() < 0.9
    np.testing.assert_array_equal(picture, picture[:, ::-1])


class PulsingCavity:
    """A cavity in a wall that contracts: another anatomy than the breast, seen by a sector probe."""

    structures = ("cavity", "wall")
    view = "middle"
    brightness = (82.0, 20.0)

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid = grid
        self.sheet = Sheet(grid, (0, 0))

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        scale = 1 + 0.2 * math.sin(time)
        depth, lateral = np.meshgrid(np.linspace(-1, 1, self.grid[0]), np.linspace(-1, 1, self.grid[1]), indexing="ij")
        radius = np.hypot(depth, lateral) * scale
        labels = np.where(radius < 0.4, 1, np.where(radius < 0.6, 2, 0)).astype(np.uint8)
        level = np.where(labels == 1, -60, np.where(labels == 2, -20, -30)).astype(np.float32)
        rows = (depth * scale + 1) / 2 * (self.grid[0] - 1)
        columns = (lateral * scale + 1) / 2 * (self.grid[1] - 1)
        zeros = np.zeros_like(level)
        place = Resampling(rows.astype(np.float32), columns.astype(np.float32), self.grid)
        return Tissue(labels, level, zeros, zeros + 1, zeros), place


def test_another_anatomy_with_several_moving_structures_can_be_scanned() -> None:
    grid = beam_grid((96, 96))

    images, labels = scan(PulsingCavity(grid), linear_scanner(stream(0), grid), sector(80), 3, (96, 96), (1,))

    assert [set(np.unique(frame)) for frame in labels] == [{0, 1, 2}] * 3
    areas = [(frame == 1).sum() for frame in labels]
    assert areas[0] > areas[1] > areas[2]
    assert images[0][labels[0] == 2].mean() > images[0][labels[0] == 1].mean() + 20


def test_the_same_arguments_give_the_same_bytes_and_other_ones_other_patients() -> None:
    def clip(cohort: str = "a", patient: int = 0, seed: int = 0) -> NDArray[np.uint8]:
        return breast_clip(cohort, patient, "benign", frames=2, size=64, seed=seed).images

    np.testing.assert_array_equal(clip(), clip())
    for other in (clip(cohort="b"), clip(patient=1), clip(seed=1)):
        assert np.abs(clip().astype(int) - other).mean() > 5


def test_worker_processes_do_not_change_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(breast_clips("a", KINDS, 2, 32, 5))
    monkeypatch.setattr(phantoms, "POOL_FROM", 1)

    shared = list(breast_clips("a", KINDS, 2, 32, 5))

    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_pictures_of_any_shape_keep_the_proportions_of_curved_geometries() -> None:
    tall, wide = (scan_conversion(sector(80), (80, 48), shape).inside for shape in ((120, 60), (60, 120)))

    for inside in (tall, wide):
        rows, columns = np.nonzero(inside)
        proportion = (rows.max() + 1 - rows.min()) / (columns.max() + 1 - columns.min())
        assert proportion == pytest.approx(1 / (2 * math.sin(math.radians(40))), rel=0.06)


def blocks(size: int, side: int) -> Iterator[tuple[int, int]]:
    for row in range(side, size - 2 * side + 1, side):
        for column in range(side, size - 2 * side + 1, side):
            yield row, column


def matched_shift(first: Array, second: Array, row: int, column: int, side: int, reach: int) -> tuple[float, float]:
    """Shift (down, right) of a block from `first` to `second`, at the correlation peak, refined by a parabola."""
    block = first[row : row + side, column : column + side]
    block = block - block.mean()
    score = np.empty((2 * reach + 1, 2 * reach + 1))
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            other = second[row + down : row + down + side, column + right : column + right + side]
            other = other - other.mean()
            score[down + reach, right + reach] = (block * other).sum() / np.sqrt((block**2).sum() * (other**2).sum())
    peak = np.unravel_index(score[1:-1, 1:-1].argmax(), (2 * reach - 1, 2 * reach - 1))
    y, x = int(peak[0]) + 1, int(peak[1]) + 1

    def vertex(left: float, middle: float, right: float) -> float:
        return 0.5 * (left - right) / (left - 2 * middle + right)

    return (
        y - reach + vertex(score[y - 1, x], score[y, x], score[y + 1, x]),
        x - reach + vertex(score[y, x - 1], score[y, x], score[y, x + 1]),
    )


def test_block_matching_between_frames_recovers_the_motion() -> None:
    size, side = 256, 40
    grid = beam_grid((size, size))
    anatomy = Breast(stream(11), "benign", grid)
    images, _ = scan(anatomy, linear_scanner(stream(12), grid), linear(), 2, (size, size), (13,))
    moved = [(after - before) for before, after in zip(anatomy.positions(0), anatomy.positions(1), strict=True)]
    first, second = images.astype(np.float32)

    errors, shifts = [], []
    for row, column in blocks(size, side):
        middle = round((row + side / 2) * 1.25), round((column + side / 2) * 0.75)
        true = -moved[0][middle] / 1.25, -moved[1][middle] / 0.75
        found = matched_shift(first, second, row, column, side, reach=5)
        errors.append(math.dist(true, found))
        shifts.append(math.hypot(*true))
    assert np.quantile(errors, 0.9) < 0.5
    assert max(shifts) > 0.5  # there is something to track


def area_under_curve(positive: list[float], negative: list[float]) -> float:
    return float(np.mean([[0.5 * (p == n) + (p > n) for n in negative] for p in positive]))


def test_mean_grey_does_not_tell_the_classes_apart() -> None:
    grey = {kind: [] for kind in KINDS}
    for patient in range(180):
        kind = KINDS[patient % 3]
        grey[kind].append(float(breast_clip("grey", patient, kind, frames=1, size=48, seed=0).images.mean()))

    for one, other in (("benign", "malignant"), ("benign", "normal"), ("malignant", "normal")):
        assert 0.35 < area_under_curve(grey[one], grey[other]) < 0.65
    assert np.std(grey["benign"]) > 10


def test_one_lesion_patient_in_twenty_has_two_lesions_and_a_normal_one_none() -> None:
    counts = [len(draw_lesions(stream(20, patient), "malignant")) for patient in range(2000)]

    assert set(counts) == {1, 2}
    assert np.mean(np.array(counts) == 2) == pytest.approx(0.05, abs=0.015)
    assert draw_lesions(stream(0), "normal") == ()


def test_every_lesion_is_in_the_smallest_picture() -> None:
    for patient in range(60):
        kind = KINDS[patient % 2]
        clip = breast_clip("small", patient, kind, frames=1, size=32, seed=0)
        assert set(np.unique(clip.labels)) == set(range(len(clip.structures) + 1))
