"""Generated patients: a clip is a function of the seed, the patient's number and the class alone."""

from __future__ import annotations

import math
import multiprocessing
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anaus_bench.simulator.breast import Breast, Kind
from anaus_bench.simulator.geometry import Geometry, Resampling, convex, linear, scan_conversion
from anaus_bench.simulator.physics import Scanner, Tissue, compress, gain_for, received, scatterers, smooth_noise

VERSION = 1
WORKERS = 2
POOL_FROM = 150  # patients from which worker processes pay for their start


class Anatomy(Protocol):
    """What a body part provides to be scanned.

    Attributes:
        sheet: Rows and columns of the sheet that holds the scatterers as material points.
        structures: Names of the label ids 1, 2, ...; a name that occurs twice has two instances.
    """

    sheet: tuple[int, int]
    structures: tuple[str, ...]

    def at(self, time: float) -> tuple[Tissue, Resampling]:
        """What the beams meet at `time` (frames), and where on the sheet of scatterers each beam sample is."""


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


KINDS: dict[str, tuple[str, ...]] = {
    "breast": ("benign", "malignant", "normal"),
    "lung": ("covid", "pneumonia", "regular"),
    "thyroid": ("benign", "malignant", "normal"),
    "heart": ("2ch", "4ch", "2ch-infarct", "4ch-infarct"),
}


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
        KeyError, ValueError: Unknown anatomy or kind; `frames` or `patients` of another length than `kinds`.
    """
    raise RuntimeError("being written")


def breast_clips(cohort: str, kinds: Sequence[Kind], frames: int, size: int, seed: int) -> Iterator[Clip]:
    """Clips of breast patients 0, 1, ... of the given `kinds`, in order; no two cohorts share a patient.

    Many patients are shared out among worker processes; the clips do not depend on it.
    """
    patients = range(len(kinds))
    clip = partial(breast_clip, cohort, frames=frames, size=size, seed=seed)
    if len(kinds) < POOL_FROM:
        yield from map(clip, patients, kinds)
        return
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(clip, patients, kinds, chunksize=8)


def breast_clip(cohort: str, patient: int, kind: Kind, *, frames: int, size: int, seed: int) -> Clip:
    """The clip of one breast patient, the same bytes for the same arguments.

    The patient fixes anatomy, scatterers, probe, and the machine's settings.
    """
    grid = beam_grid(size)
    key = seed, zlib.crc32(cohort.encode()), patient
    rng = stream(*key, 0)
    anatomy = Breast(stream(*key, 1), kind, grid)
    geometry = linear() if rng.random() < 0.85 else convex(float(rng.integers(18, 36)), 2.0)
    return scan(anatomy, linear_scanner(rng, grid), geometry, frames, size, key)


def beam_grid(size: int) -> tuple[int, int]:
    """Samples and lines for a picture of `size` pixels: 320 x 192 for 256."""
    return round(1.25 * size), round(0.75 * size)


def scan(anatomy: Anatomy, scanner: Scanner, geometry: Geometry, frames: int, size: int, seed: tuple[int, ...]) -> Clip:
    """A clip of `frames` frames, (size, size) pixels, whose speckle moves with the tissue and slowly decorrelates."""
    rng = stream(*seed, 2)
    mean_grey = float(np.clip(rng.normal(82, 20), 45, 130))  # the same for all classes, so that it tells none
    turn = rng.uniform(0.14, 0.22)  # 2 to 5 % of a frame's speckle is new
    first = scatterers(rng, anatomy.sheet)
    second = scatterers(rng, anatomy.sheet) if frames > 1 else first
    grid = beam_grid(size)
    conversion = scan_conversion(geometry, grid, size)
    images, labels = [], []
    gain = None
    for frame in range(frames):
        tissue, place = anatomy.at(frame)
        # Two independent fields mixed at a turning angle: any two frames correlate by the cosine between them.
        mixed = np.float32(math.cos(turn * frame)) * first[:2] + np.float32(math.sin(turn * frame)) * second[:2]
        field = np.stack([place.linear(mixed[0]), place.linear(mixed[1]), place.nearest(first[2])])
        envelope = received(tissue, field, scanner, stream(*seed, 3, frame))
        if gain is None:
            gain = gain_for(envelope, scanner, mean_grey)
        images.append(conversion.picture(compress(envelope, scanner, gain)))
        labels.append(conversion.label_map(tissue.labels))
    return Clip(np.stack(images), np.stack(labels), anatomy.structures, "breast", seed[-1], 0, "", "lesion", "linear", 25.0, (1.0, 1.0))


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
