"""Lung, thyroid and heart: what is labelled, what moves and how, and what must not give a class away."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, label

from anaus_bench.simulator import heart, lung, phantoms, thyroid
from anaus_bench.simulator.geometry import Array, Geometry, linear, scan_conversion, sector
from anaus_bench.simulator.heart import Heart
from anaus_bench.simulator.lung import Lung, draw_signs
from anaus_bench.simulator.phantoms import KINDS, Clip, beam_grid, clips, convex_scanner, scan, stream
from anaus_bench.simulator.physics import blur, echoes, scatterers
from anaus_bench.simulator.thyroid import Thyroid
from tests.simulator.test_phantoms import area_under_curve, blocks, matched_shift

NEW = ("lung", "thyroid", "heart")
GRID = (320, 192)


def one(anatomy: str, kind: str, patient: int = 0, frames: int = 1, size: int = 64, beats: float = 1.0) -> Clip:
    return next(clips(anatomy, "one", [kind], frames=frames, size=size, seed=0, patients=[patient], beats=beats))


def body(anatomy: str, patient: int, grid: tuple[int, int] = GRID, period: float = 20.0) -> Lung | Thyroid | Heart:
    kind = KINDS[anatomy][patient % len(KINDS[anatomy])]
    if anatomy == "lung":
        return Lung(stream(1, patient), kind, grid)
    if anatomy == "thyroid":
        return Thyroid(stream(1, patient), kind, grid)
    return Heart(stream(1, patient), stream(2, patient), kind, grid, 80.0, period)


@pytest.mark.parametrize("anatomy", KINDS)
def test_a_clip_says_what_it_shows(anatomy: str) -> None:
    kinds = KINDS[anatomy]

    made = list(clips(anatomy, "a", kinds, frames=2, size=(48, 64), seed=3))

    assert [clip.kind for clip in made] == list(kinds)
    assert [clip.patient for clip in made] == list(range(len(kinds)))
    for clip in made:
        assert clip.images.shape == clip.labels.shape == (2, 48, 64)
        assert clip.images.dtype == clip.labels.dtype == np.uint8
        assert clip.labels.max() <= len(clip.structures)
        assert (clip.anatomy, clip.video) == (anatomy, 0)
        assert clip.probe in ("linear", "convex", "phased")
        assert clip.fps > 0
        assert all(0.05 < side < 6 for side in clip.spacing)
        assert (clip.ejection_fraction is None) == (clip.diastole is None) == (anatomy != "heart")


def test_each_clip_may_have_its_own_number_of_frames_and_patients_several_videos() -> None:
    made = list(clips("heart", "a", ("2ch", "4ch", "4ch"), frames=(2, 3, 1), size=48, seed=0, patients=(7, 7, 8)))

    assert [len(clip.images) for clip in made] == [2, 3, 1]
    assert [(clip.patient, clip.video, clip.view) for clip in made] == [(7, 0, "2ch"), (7, 1, "4ch"), (8, 0, "4ch")]


@pytest.mark.parametrize("anatomy", KINDS)
def test_two_videos_of_a_patient_show_the_same_anatomy_with_other_speckle(anatomy: str) -> None:
    kind = KINDS[anatomy][0]

    first, again = clips(anatomy, "a", (kind, kind), frames=1, size=64, seed=0, patients=(0, 0))
    _, other = clips(anatomy, "a", (kind, kind), frames=1, size=64, seed=0)

    def agreement(one: Clip, two: Clip) -> float:
        either = (one.labels > 0) | (two.labels > 0)
        return float((one.labels == two.labels)[either].mean())

    assert agreement(first, again) > agreement(first, other)
    assert np.abs(first.images.astype(int) - again.images).mean() > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"anatomy": "liver"}, "unknown anatomy 'liver'"),
        ({"kinds": ["regular", "benign"]}, "unknown kind 'benign' of lung"),
        ({"frames": [1]}, "2 kinds, but 1 numbers of frames"),
        ({"patients": [1, 2, 3]}, "3 patients"),
    ],
)
def test_wrong_requests_are_refused_at_once(changes: dict[str, object], words: str) -> None:
    request = {"anatomy": "lung", "kinds": ["regular", "covid"], "frames": 1} | changes

    with pytest.raises(ValueError, match=words):
        clips(request.pop("anatomy"), "a", request.pop("kinds"), size=48, seed=0, **request)


@pytest.mark.parametrize("anatomy", NEW)
def test_the_same_arguments_give_the_same_bytes_and_other_ones_other_patients(anatomy: str) -> None:
    def images(cohort: str = "a", patient: int = 0, seed: int = 0) -> NDArray[np.uint8]:
        kind = KINDS[anatomy][0]
        return next(clips(anatomy, cohort, [kind], frames=2, size=48, seed=seed, patients=[patient])).images

    np.testing.assert_array_equal(images(), images())
    for other in (images(cohort="b"), images(patient=1), images(seed=1)):
        assert np.abs(images().astype(int) - other).mean() > 3


@pytest.mark.parametrize("anatomy", NEW)
def test_worker_processes_do_not_change_the_clips(anatomy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = KINDS[anatomy]
    alone = list(clips(anatomy, "a", kinds, frames=2, size=32, seed=5))
    monkeypatch.setattr(phantoms, "POOL_FROM", 1)

    shared = list(clips(anatomy, "a", kinds, frames=2, size=32, seed=5))

    for first, second in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert replace(first, images=0, labels=0) == replace(second, images=0, labels=0)


def nearest_sample(geometry: Geometry, row: int, column: int, size: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Indices of the beam sample nearest to a pixel's centre, possibly outside the grid."""
    half = math.radians(geometry.angle) / 2
    height = geometry.radius + 1 - geometry.radius * math.cos(half)
    pixel = max(height, 2 * (geometry.radius + 1) * math.sin(half)) / size
    down = geometry.radius * math.cos(half) + (row + 0.5) * pixel
    across = (column + 0.5 - size / 2) * pixel
    depth = math.hypot(down, across) - geometry.radius
    lateral = math.atan2(across, down) / (2 * half) + 0.5
    if not (0 <= depth <= 1 and 0 <= lateral <= 1):
        return -1, -1
    return min(int(depth * grid[0]), grid[0] - 1), min(int(lateral * grid[1]), grid[1] - 1)


@pytest.mark.parametrize("anatomy", NEW)
def test_mask_is_the_label_map_read_at_each_pixels_nearest_sample(anatomy: str) -> None:
    size, geometry = 80, Geometry(70.0, 0.5) if anatomy == "lung" else sector(80.0)
    grid = beam_grid((size, size))
    seen = body(anatomy, 1, grid)
    tissue, _ = seen.at(0)
    _, labels = scan(seen, convex_scanner(stream(8), grid), geometry, 1, (size, size), (9,))

    expected = np.zeros_like(labels[0])
    for row in range(size):
        for column in range(size):
            sample, line = nearest_sample(geometry, row, column, size, grid)
            expected[row, column] = tissue.labels[sample, line] if sample >= 0 else 0
    # A pixel half way between two samples may fall to either, by rounding.
    assert (labels[0] != expected).sum() <= 3
    assert labels.any()


REGIONS = {
    "lung": (lung.CONSOLIDATION, lung.EFFUSION),
    "thyroid": (thyroid.GLAND,),
    "heart": (heart.CAVITY, heart.MYOCARDIUM),
}


@pytest.mark.parametrize("anatomy", NEW)
def test_levels_of_regions_are_as_specified(anatomy: str) -> None:
    measured = 0
    scanner = convex_scanner(stream(3), GRID)
    for patient in range(8):
        tissue, _ = body(anatomy, patient).at(0)
        signal = blur(
            echoes(replace(tissue, specular=0 * tissue.specular), scatterers(stream(4, patient), GRID)), scanner
        )
        power = (signal.astype(np.float64) ** 2).sum(axis=0)
        for structure in REGIONS[anatomy]:
            inside = binary_erosion(tissue.labels == structure, iterations=6)
            if inside.sum() < 1500:
                continue
            specified = np.mean(10 ** (tissue.level[inside].astype(np.float64) / 10))
            assert 10 * np.log10(power[inside].mean() / specified) == pytest.approx(0, abs=1)
            measured += 1
    assert measured >= 3


def tracked(anatomy: Lung | Thyroid | Heart, time: int, tissue_only: bool) -> tuple[list[float], list[float]]:
    """Errors and lengths, in pixels, of the motion that block matching finds between two frames of the beam grid."""
    side = 40
    images, labels = scan(anatomy, phantoms.linear_scanner(stream(12), GRID), linear(), 2, (256, 256), (13,), time)
    moved = [after - before for before, after in zip(*map(anatomy.positions, (time, time + 1)), strict=True)]
    first, second = images.astype(np.float32)
    errors, shifts = [], []
    for row, column in blocks(256, side):
        window = np.s_[
            round(row * 1.25) : round((row + side) * 1.25), round(column * 0.75) : round((column + side) * 0.75)
        ]
        down, across = -moved[0][window] / 1.25, -moved[1][window] / 0.75
        sheared = max(np.ptp(down), np.ptp(across)) > 1  # not one motion to be found
        if sheared or (tissue_only and (labels[0, row : row + side, column : column + side] == heart.CAVITY).any()):
            continue
        found = matched_shift(first, second, row, column, side, reach=6)
        errors.append(math.dist((down.mean(), across.mean()), found))
        shifts.append(math.hypot(down.mean(), across.mean()))
    return errors, shifts


@pytest.mark.parametrize(("anatomy", "patient", "time"), [("lung", 2, 0), ("thyroid", 1, 5), ("heart", 1, 15)])
def test_block_matching_between_frames_recovers_the_motion(anatomy: str, patient: int, time: int) -> None:
    errors, shifts = tracked(body(anatomy, patient, period=60.0), time, anatomy == "heart")

    assert len(errors) >= 5
    assert np.quantile(errors, 0.8) < 0.5
    assert max(shifts) > 0.5  # there is something to track


@pytest.mark.parametrize("anatomy", NEW)
def test_mean_grey_does_not_tell_the_classes_apart(anatomy: str) -> None:
    grey: dict[str, list[float]] = {kind: [] for kind in KINDS[anatomy]}
    kinds = list(grey) * 60
    for clip in clips(anatomy, "grey", kinds, frames=1, size=40, seed=0):
        grey[clip.kind].append(float(clip.images.mean()))

    for first, second in combinations(grey, 2):
        assert 0.35 < area_under_curve(grey[first], grey[second]) < 0.65


def test_a_lungs_pleura_is_always_seen_and_nothing_behind_a_rib() -> None:
    ribs = 0
    for patient in range(24):
        tissue, _ = body("lung", patient).at(3)
        assert (tissue.labels == lung.PLEURA).any()
        for line in tissue.labels.T:
            if (line == lung.RIB).any():
                ribs += 1
                last = np.flatnonzero(line == lung.RIB)[-1]
                assert not line[last + 1 :].any()
    assert ribs > 100


def test_signs_of_the_lung_are_those_of_its_class() -> None:
    signs = {kind: [draw_signs(stream(9, patient), kind) for patient in range(300)] for kind in lung.KINDS}

    assert all(len(sign.b_lines) <= 1 and not sign.patches and not sign.effusion for sign in signs["regular"])
    assert all(len(sign.b_lines) >= 3 and sign.roughness > 0.3 for sign in signs["covid"])
    assert all(len(sign.patches) == 1 and sign.patches[0].depth >= 0.2 for sign in signs["pneumonia"])
    assert 0.3 <= np.mean([sign.effusion > 0 for sign in signs["pneumonia"]]) <= 0.5


def test_b_lines_reach_the_bottom_and_a_lines_repeat_the_pleura() -> None:
    repeats = 0
    for patient in range(2, 40, 3):  # regular
        anatomy = body("lung", patient)
        tissue, _ = anatomy.at(0)
        ring_down = tissue.labels == lung.B_LINE
        np.testing.assert_array_equal(ring_down[-1], ring_down.any(axis=0))
        lift = anatomy.positions(0)[0][0, 0] - anatomy.sheet.margin[0]  # samples by which breathing moves all
        for column in range(0, GRID[1], 8):
            line = tissue.labels[:, column]
            if (line == lung.A_LINE).any() and (line == lung.PLEURA).any():
                depth = np.flatnonzero(line == lung.PLEURA)[0] + lift
                rows = np.flatnonzero(line == lung.A_LINE) + lift
                away = np.abs(rows[:, None] - depth * np.arange(2, 8)).min(axis=1)
                assert away.max() < 0.03 * GRID[0]
                repeats += 1
    assert repeats > 20


def test_lung_slides_along_a_resting_chest_wall() -> None:
    anatomy = body("lung", 2)
    assert isinstance(anatomy, Lung)
    across = np.stack([anatomy.positions(time)[1] for time in range(12)])
    top, bottom = across[:, 5], across[:, -5]

    assert np.ptp(top, axis=0).max() == 0
    assert np.ptp(bottom, axis=0).min() > 2


@pytest.mark.parametrize("kind", thyroid.KINDS)
def test_every_nodule_is_in_the_smallest_picture_and_touches_the_gland(kind: str) -> None:
    for patient in range(40):
        clip = one("thyroid", kind, patient, size=32)
        nodules = range(int(thyroid.FIRST_NODULE), len(clip.structures) + 1)
        assert (len(nodules) == 0) == (kind == "normal")
        assert set(np.unique(clip.labels)) >= {1, 2, *nodules}


def test_a_nodule_lies_in_the_gland() -> None:
    for patient in range(30):
        clip = one("thyroid", ("benign", "malignant")[patient % 2], patient, size=128)
        nodule = clip.labels[0] >= thyroid.FIRST_NODULE
        ring = label(nodule)[0]
        assert ring.max() <= len(clip.structures)  # whole, each
        around = clip.labels[0][binary_dilation(nodule, iterations=2) & ~nodule]
        assert (around == thyroid.GLAND).mean() > 0.6


def test_a_sweep_leaves_the_middle_of_the_lobes() -> None:
    clip = one("thyroid", "normal", 1, frames=40, size=96)

    areas = (clip.labels == thyroid.GLAND).sum(axis=(1, 2))

    assert areas[0] == pytest.approx(areas.max(), rel=0.03)
    assert areas.min() < 0.85 * areas[0]


def test_arteries_pulse() -> None:
    clip = one("thyroid", "normal", 0, frames=20, size=128)

    areas = (clip.labels == thyroid.CAROTID).sum(axis=(1, 2))

    assert np.ptp(areas) > 0.05 * areas.mean()


def test_a_half_cycle_goes_from_end_diastole_to_end_systole() -> None:
    clip = one("heart", "4ch", frames=12, size=128, beats=0.5)

    areas = (clip.labels == heart.CAVITY).sum(axis=(1, 2))

    assert (clip.diastole, clip.systole) == (0, 11)
    assert (np.diff(areas) <= 0).all()
    assert areas[-1] < 0.8 * areas[0]


def test_a_full_cycle_returns_to_end_diastole() -> None:
    clip = one("heart", "2ch", frames=21, size=96)

    areas = (clip.labels == heart.CAVITY).sum(axis=(1, 2))

    assert clip.systole == 10 == areas.argmin()
    np.testing.assert_array_equal(clip.labels[0], clip.labels[-1])


def volume(cavity: NDArray[np.bool_]) -> float:
    """8 A^2 / (3 pi L): area and length of a mask (area-length method)."""
    points = np.argwhere(cavity).astype(np.float64)
    apex = points[points[:, 0].argmin()]
    base = points[points[:, 0] >= np.quantile(points[:, 0], 0.93)].mean(axis=0)
    return float(8 * len(points) ** 2 / (3 * math.pi * math.dist(apex, base)))


@pytest.mark.parametrize("patient", range(6))
def test_the_recorded_ejection_fraction_is_that_of_the_masks(patient: int) -> None:
    clip = one("heart", ("4ch", "2ch-infarct")[patient % 2], patient, frames=3, size=256)
    assert clip.systole == 1

    diastole, systole = (volume(clip.labels[frame] == heart.CAVITY) for frame in (0, 1))

    assert 1 - systole / diastole == pytest.approx(clip.ejection_fraction, abs=0.06)


def test_ejection_fractions_are_those_of_patients_and_lower_with_an_infarct() -> None:
    def fractions(kind: heart.Kind) -> Array:
        hearts = [Heart(stream(1, n), stream(2, n), kind, (40, 24), 80.0, 20.0) for n in range(60)]
        return np.array([one.ejection_fraction for one in hearts])

    healthy, infarcted = fractions("4ch"), fractions("4ch-infarct")

    assert healthy.min() > 0.3
    assert healthy.max() < 0.72
    assert (infarcted < healthy).all()
    np.testing.assert_allclose(fractions("2ch"), healthy)


def test_the_infarcted_segment_hardly_moves() -> None:
    for patient in range(12):
        infarct = Heart(stream(1, patient), stream(2), "4ch-infarct", (40, 24), 80.0, 20.0)
        assert infarct.motion.infarct is not None
        region, wall = infarct.motion.infarct
        place = np.searchsorted(heart.KNOTS, (region + 0.5) / 3)
        rest, systole = infarct.contours(0.0)[0], infarct.contours(1.0)[0]
        motion = 1 - systole[:, place] / rest[:, place]

        assert motion[wall] <= 0.31 * motion[1 - wall]
        assert infarct.infarct == f"{heart.REGIONS[region]} {heart.WALLS['4ch'][wall]}"


def test_the_wall_is_open_at_the_base_and_thickens() -> None:
    clip = one("heart", "4ch", 3, frames=3, size=192)

    for frame in clip.labels:
        cavity, wall, atrium = (np.argwhere(frame == number) for number in (1, 2, 3))
        assert abs(wall[:, 0].max() - cavity[:, 0].max()) < 14  # no ring below the cavity
        assert atrium[:, 0].mean() > cavity[:, 0].max() - 8
    areas = [(frame == heart.MYOCARDIUM).sum() / (frame == heart.CAVITY).sum() for frame in clip.labels]
    assert areas[1] > 1.3 * areas[0]


def test_outside_the_sector_image_and_mask_are_zero() -> None:
    shape, geometry = (96, 96), sector(80.0)
    grid = beam_grid(shape)
    images, labels = scan(body("heart", 1, grid), convex_scanner(stream(8), grid), geometry, 2, shape, (9,))
    inside = scan_conversion(geometry, grid, shape).inside

    assert not images[:, ~inside].any()
    assert not labels[:, ~inside].any()
    assert labels[:, inside].any()
