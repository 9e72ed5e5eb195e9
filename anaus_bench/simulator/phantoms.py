"""Generated patients: a clip is a function of the seed, the patient's number and the class alone."""

from __future__ import annotations

import math
import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anaus_bench.simulator import breast, heart, lung, thyroid
from anaus_bench.simulator.geometry import Geometry, Resampling, Sheet, convex, linear, scan_conversion, sector
from anaus_bench.simulator.physics import Scanner, Tissue, compress, gain_for, received, scatterers, smooth_noise

VERSION = 2
WORKERS = 2
POOL_FROM = 300  # frames from which worker processes pay for their start
VIDEO = 10_007  # frames between the starts of a patient's videos
KINDS: dict[str, tuple[str, ...]] = {
    "breast": breast.KINDS,
    "lung": lung.KINDS,
    "thyroid": thyroid.KINDS,
    "heart": heart.KINDS,
}


class Anatomy(Protocol):
    """What a body part provides to be scanned.

    Attributes:
        sheet: The sheet that holds the scatterers as material points.
        structures: Names of the label ids 1, 2, ...; a name that occurs twice has two instances.
        view: What the picture shows.
        brightness: Mean and spread of the mean grey level between patients, whatever their kind, so that it tells none.
    """

    sheet: Sheet
    structures: tuple[str, ...]
    view: str
    brightness: tuple[float, float]

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""


@dataclass(frozen=True)
class Examination:
    """A patient before a probe.

    Attributes:
        anatomy: What is scanned.
        geometry: Of the beams.
        probe: "linear", "convex" or "phased".
        scanner: Settings of the machine.
        depth: Imaging depth in millimetres.
        fps: Frames a second.
    """

    anatomy: Anatomy
    geometry: Geometry
    probe: str
    scanner: Scanner
    depth: float
    fps: float


@dataclass(frozen=True)
class Clip:
    """A generated video.

    Attributes:
        images: (T, H, W) uint8.
        labels: (T, H, W) uint8, 0 = none, k = `structures[k-1]`.
        structures: Name of each label id. Lung, thyroid and heart keep their ids whatever is to be seen:
            lung 1 pleura, 2 rib, 3 a-line, 4 b-line, 5 consolidation, 6 effusion; thyroid 1 gland, 2 trachea,
            3 carotid, 4 and above one nodule each (the whole gland is 1 together with 4 and above); heart 1 left
            ventricle, 2 myocardium, 3 left atrium. Breast: one lesion each.
        anatomy: "breast", "lung", "thyroid" or "heart".
        patient: Number of the patient in the cohort.
        video: Number of the video among the patient's.
        kind: One of `KINDS[anatomy]`.
        view: What the picture shows: breast "lesion"; lung "intercostal"; thyroid "lobe" or "transverse"; heart "2ch"
            or "4ch".
        probe: "linear", "convex" or "phased".
        fps: Frames a second.
        spacing: Millimetres a pixel, (down, across).
        diastole, systole: Heart alone: frames of end-diastole and end-systole, from 0; otherwise None.
        ejection_fraction: Heart alone: of this view, in [0, 1].
        infarct: Heart alone: name of the segment that hardly moves, or None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    structures: tuple[str, ...]
    anatomy: str
    patient: int
    video: int
    kind: str
    view: str
    probe: str
    fps: float
    spacing: tuple[float, float]
    diastole: int | None = None
    systole: int | None = None
    ejection_fraction: float | None = None
    infarct: str | None = None


def clips(
    anatomy: str,
    cohort: str,
    kinds: Sequence[str],
    *,
    frames: int | Sequence[int],
    size: int | tuple[int, int],
    seed: int,
    patients: Sequence[int] | None = None,
    beats: float = 1.0,
) -> Iterator[Clip]:
    """One clip of each entry of `kinds`, in order; the same bytes for the same arguments.

    The patient fixes anatomy, scatterers, probe and the machine's settings; a video, motion and noise. Many clips are
    shared out among worker processes; the result does not depend on it.

    Args:
        anatomy: A key of `KINDS`.
        cohort: Name of the population, as a rule the data set's: no two cohorts share a patient.
        kinds: Each one of `KINDS[anatomy]`.
        frames: Frames of every clip, or of each.
        size: Side of the square pictures in pixels, or (rows, columns).
        seed: Fixes everything else.
        patients: Patient of each clip; 0, 1, 2, ... by default. The n-th clip of a patient is its n-th video, so that
            kinds ("2ch", "4ch") with patients (0, 0) are two views of one heart.
        beats: Heart alone: cycles from the first frame, which is end-diastole, to the last; 0.5 ends at end-systole
            (a half sequence as in CAMUS), 1 is a full cycle. Any other anatomy moves at its own speed.

    Raises:
        ValueError: Unknown anatomy or kind; `frames` or `patients` of another length than `kinds`.
    """
    if anatomy not in KINDS:
        raise ValueError(f"unknown anatomy {anatomy!r}; expected one of {', '.join(KINDS)}")
    if unknown := sorted(set(kinds) - set(KINDS[anatomy])):
        raise ValueError(f"unknown kind {unknown[0]!r} of {anatomy}; expected one of {', '.join(KINDS[anatomy])}")
    lengths = [frames] * len(kinds) if isinstance(frames, int) else list(frames)
    people = list(range(len(kinds))) if patients is None else list(patients)
    if len(lengths) != len(kinds) or len(people) != len(kinds):
        raise ValueError(f"{len(kinds)} kinds, but {len(lengths)} numbers of frames and {len(people)} patients")
    videos = [people[:index].count(patient) for index, patient in enumerate(people)]
    shape = (size, size) if isinstance(size, int) else size
    one = partial(_clip, anatomy, cohort, shape=shape, seed=seed, beats=beats)
    return _each(one, sum(lengths), people, videos, kinds, lengths)


def _each(clip: Callable[..., Clip], total: int, *arguments: Sequence[object]) -> Iterator[Clip]:
    """`clip` of each set of arguments, in order; from many frames on by worker processes."""
    if total < POOL_FROM:
        yield from map(clip, *arguments)
        return
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(clip, *arguments, chunksize=4)


def _clip(
    anatomy: str,
    cohort: str,
    patient: int,
    video: int,
    kind: str,
    frames: int,
    *,
    shape: tuple[int, int],
    seed: int,
    beats: float,
) -> Clip:
    key = seed, zlib.crc32(cohort.encode()), patient
    start = video * VIDEO
    period = max(frames - 1, 1) / beats
    examination = EXAMINATIONS[anatomy](key, kind, beam_grid(shape), period, start)
    images, labels = scan(examination.anatomy, examination.scanner, examination.geometry, frames, shape, key, start)
    down, across = examination.geometry.pixel(shape)
    clip = Clip(
        images=images,
        labels=labels,
        structures=examination.anatomy.structures,
        anatomy=anatomy,
        patient=patient,
        video=video,
        kind=kind,
        view=examination.anatomy.view,
        probe=examination.probe,
        fps=examination.fps,
        spacing=(down * examination.depth, across * examination.depth),
    )
    if not isinstance(examination.anatomy, heart.Heart):
        return clip
    systole = round(period / 2)
    return replace(
        clip,
        diastole=0,
        systole=systole if systole < frames else None,
        ejection_fraction=examination.anatomy.ejection_fraction,
        infarct=examination.anatomy.infarct,
    )


def breast_clips(cohort: str, kinds: Sequence[str], frames: int, size: int, seed: int) -> Iterator[Clip]:
    """`clips` of the breast."""
    return clips("breast", cohort, kinds, frames=frames, size=size, seed=seed)


def breast_clip(cohort: str, patient: int, kind: str, *, frames: int, size: int, seed: int) -> Clip:
    """The clip of one breast patient."""
    return next(clips("breast", cohort, [kind], frames=frames, size=size, seed=seed, patients=[patient]))


def _examine_breast(key: tuple[int, ...], kind: breast.Kind, grid: tuple[int, int], *_: float) -> Examination:
    rng, details = stream(*key, 0), stream(*key, 4)
    anatomy = breast.Breast(stream(*key, 1), kind, grid)
    # The trapezoid of a linear probe's virtual convex mode, now and then.
    geometry = linear() if rng.random() < 0.85 else convex(float(rng.integers(18, 36)), 2.0)
    scanner = linear_scanner(rng, grid)
    return Examination(anatomy, geometry, "linear", scanner, details.uniform(30, 50), details.uniform(15, 40))


def _examine_lung(key: tuple[int, ...], kind: lung.Kind, grid: tuple[int, int], *_: float) -> Examination:
    rng, details = stream(*key, 0), stream(*key, 4)
    anatomy = lung.Lung(stream(*key, 1), kind, grid)
    fps = details.uniform(15, 40)
    if rng.random() < 0.15:
        return Examination(anatomy, linear(), "linear", linear_scanner(rng, grid), details.uniform(40, 70), fps)
    depth = details.uniform(60, 130)
    geometry = convex(float(rng.integers(56, 74)), round(rng.uniform(40, 60) / depth, 1))
    return Examination(anatomy, geometry, "convex", convex_scanner(rng, grid), depth, fps)


def _examine_thyroid(key: tuple[int, ...], kind: thyroid.Kind, grid: tuple[int, int], *_: float) -> Examination:
    rng, details = stream(*key, 0), stream(*key, 4)
    anatomy = thyroid.Thyroid(stream(*key, 1), kind, grid)
    scanner = linear_scanner(rng, grid)
    return Examination(anatomy, linear(), "linear", scanner, details.uniform(35, 50), details.uniform(15, 40))


def _examine_heart(
    key: tuple[int, ...], kind: heart.Kind, grid: tuple[int, int], period: float, start: int
) -> Examination:
    rng, details = stream(*key, 0), stream(*key, 4)
    angle = float(rng.integers(75, 91))
    section = stream(*key, 5, heart.KINDS.index(kind) % 2)
    anatomy = heart.Heart(stream(*key, 1), section, kind, grid, angle, period, start)
    depth, rate = details.uniform(140, 180), details.uniform(55, 95)  # beats a minute
    return Examination(anatomy, sector(angle), "phased", convex_scanner(rng, grid), depth, period * rate / 60)


EXAMINATIONS: dict[str, Callable[..., Examination]] = {
    "breast": _examine_breast,
    "lung": _examine_lung,
    "thyroid": _examine_thyroid,
    "heart": _examine_heart,
}


def beam_grid(shape: tuple[int, int]) -> tuple[int, int]:
    """Samples and lines for a picture of `shape` (rows, columns): 320 x 192 for 256 x 256."""
    return round(1.25 * shape[0]), round(0.75 * shape[1])


def scan(
    anatomy: Anatomy,
    scanner: Scanner,
    geometry: Geometry,
    frames: int,
    shape: tuple[int, int],
    key: tuple[int, ...],
    start: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and label maps, each (frames, rows, columns) uint8, from the time `start` (frames) on.

    Speckle moves with the tissue and slowly decorrelates; `key` fixes it.
    """
    rng = stream(*key, 2)
    mean, spread = anatomy.brightness
    mean_grey = float(np.clip(rng.normal(mean, spread), mean - 1.85 * spread, mean + 2.4 * spread))
    turn = rng.uniform(0.14, 0.22)  # 2 to 5 % of a frame's speckle is new
    first = scatterers(rng, anatomy.sheet.shape)
    second = scatterers(rng, anatomy.sheet.shape) if start or frames > 1 else first
    conversion = scan_conversion(geometry, anatomy.sheet.grid, shape)
    images, labels = [], []
    gain = None
    for time in range(start, start + frames):
        tissue, place = anatomy.at(time)
        # Two independent fields mixed at a turning angle: any two frames correlate by the cosine between them.
        mixed = np.float32(math.cos(turn * time)) * first[:2] + np.float32(math.sin(turn * time)) * second[:2]
        field = np.stack([place.linear(mixed[0]), place.linear(mixed[1]), place.nearest(first[2])])
        envelope = received(tissue, field, scanner, stream(*key, 3, time))
        if gain is None:
            gain = gain_for(envelope, scanner, mean_grey)
        images.append(conversion.picture(compress(envelope, scanner, gain)))
        labels.append(conversion.label_map(tissue.labels))
    return np.stack(images), np.stack(labels)


def convex_scanner(rng: np.random.Generator, grid: tuple[int, int]) -> Scanner:
    """A convex or phased probe of 2 to 5 MHz: a wider beam, more clutter, less speckle reduction."""
    focal = rng.uniform(1.3, 1.9)
    return replace(
        linear_scanner(rng, grid),
        axial_sigma=rng.uniform(1.1, 1.7),
        focal_sigma=focal,
        far_sigma=focal * rng.uniform(1.3, 1.9),
        focus=rng.uniform(0.3, 0.6),
        echo=rng.uniform(0.02, 0.12),
        dynamic_range=rng.uniform(48, 64),
        smoothing=rng.uniform(0.6, 1.1),
    )


def linear_scanner(rng: np.random.Generator, grid: tuple[int, int]) -> Scanner:
    """A linear probe of 5 to 15 MHz and a machine's settings."""
    focal = rng.uniform(0.8, 1.2)
    depth = np.linspace(0, 1, grid[0], dtype=np.float32)
    time_gain = np.float32(1.5) * smooth_noise(rng, (grid[0], 1), (0.2, 1.0))[:, 0]
    time_gain -= np.float32(rng.uniform(0, 14)) * np.clip(depth - np.float32(0.45), 0, 1)
    contact = np.float32(0.8) * smooth_noise(rng, (1, grid[1]), (1.0, 0.12))[0]
    poor = smooth_noise(rng, (1, grid[1]), (1.0, 0.035))[0] - np.float32(rng.uniform(1.2, 2.5))
    contact -= np.float32(6) * np.clip(poor, 0, 1.5)
    return Scanner(
        axial_sigma=rng.uniform(0.8, 1.2),
        focal_sigma=focal,
        far_sigma=focal * rng.uniform(1.3, 2.0),
        focus=rng.uniform(0.25, 0.5),
        echo=rng.uniform(0.05, 0.25),
        echo_depth=rng.uniform(0.02, 0.05),
        haze=rng.uniform(-62, -48),
        noise=rng.uniform(-66, -50),
        time_gain=time_gain,
        contact=contact,
        dynamic_range=rng.uniform(50, 66),
        gamma=rng.uniform(0.9, 1.25),
        smoothing=rng.uniform(0.8, 1.4),
    )


def stream(*key: int) -> np.random.Generator:
    """An independent generator for each key, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
