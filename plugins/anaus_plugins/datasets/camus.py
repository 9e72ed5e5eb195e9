"""CAMUS: echocardiography of 500 patients in two views, with the left ventricle, its wall and the left atrium marked
(Leclerc et al., 2019).

Two editions are read: the NIfTI one (half a cycle of every view, every frame annotated) and the older challenge
(MetaImage; end-diastole and end-systole alone are annotated).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.layout import check_root, count_warnings, fingerprint, is_phantom, locate, start_phantoms
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, naming, visible
from anaus_bench.datasets.pixels import check_gray
from anaus_bench.datasets.text import read_fields, read_json
from anaus_bench.datasets.volumes import NIFTI_SUFFIXES, read_volume, volume_header
from anaus_bench.errors import (
    BadMaskValues,
    CountMismatch,
    DuplicateId,
    EmptyMask,
    LayoutError,
    MissingMask,
    OrphanMask,
    SizeMismatch,
    UnreadableFile,
    WrongVersion,
)
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

if TYPE_CHECKING:
    from anaus_bench.simulator.phantoms import Clip

VIEWS = ("2CH", "4CH")
NAME = re.compile(
    r"(?P<patient>patient\d+)_(?P<view>2CH|4CH)_(?P<part>ED|ES|half_sequence|sequence)(?P<gt>_gt)?\.(?P<suffix>nii|nii\.gz|mhd)"
)
PATIENTS = 500
FRAMES = 20  # of a generated half sequence; fewer where that leaves few patients
SUBGROUPS = "subgroups_testing.json"
REPACKED = (".h5", ".hdf5", ".npz", ".npy")


@dataclass(frozen=True)
class _View:
    """One view of one patient.

    Attributes:
        frames: Number of frames.
        diastole, systole: Their positions, from 0.
    """

    patient: str
    view: str
    frames: int
    diastole: int
    systole: int


class CAMUS(Dataset[Settings]):
    """Frames of `patientNNNN/patientNNNN_{2CH,4CH}_half_sequence.nii.gz`; both views of a patient are one group."""

    name = "camus"
    title = "CAMUS echocardiography"
    structures = ("left ventricle", "myocardium", "left atrium")
    licence = "CC BY-NC-SA 4.0, non-commercial research only, citation mandatory"
    url = "https://humanheart-project.creatis.insa-lyon.fr/database/"
    how_to_get = (
        "Download CAMUS_public from https://humanheart-project.creatis.insa-lyon.fr/database/ (no registration) and "
        "unpack it; the root is the folder that holds database_nifti/, or database_nifti itself."
    )
    expected_count = 19232
    reference = (
        "Leclerc et al., Deep learning for segmentation using an open large-scale dataset in 2D echocardiography, "
        "IEEE TMI 38(9), 2019, doi:10.1109/TMI.2019.2900516"
    )

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._open: tuple[Path, NDArray[np.uint8], NDArray[np.uint8]] | None = None  # the sequence read last

    def scan(self, root: Path) -> Index:
        """All frames of all views, from the file names, the `Info_*.cfg` and the headers.

        Raises:
            DatasetNotFound, LayoutError: Root or patients missing, or names that are not the official ones.
            WrongVersion: A re-packed edition, or a mixture of editions.
            MissingMask, OrphanMask: A view lacks one of its files.
            CountMismatch, SizeMismatch, UnreadableFile: Headers, masks and cfg contradict each other.
        """
        self._open = None
        check_root(self, root)
        self._refuse_repacked(root)
        base = locate(
            self,
            root,
            ("CAMUS_public/database_nifti", "database_nifti", "CAMUS_public"),
            self._has_patients,
            "folders patientNNNN (or training/ with them)",
        )
        volumes = list_files(self, base, base, (*NIFTI_SUFFIXES, ".mhd"))
        others = list_files(self, base, base, (".cfg", ".raw", ".zraw", SUBGROUPS))
        older = any(file.path.endswith(".mhd") for file in volumes)
        if older and not all(file.path.endswith(".mhd") for file in volumes):
            raise WrongVersion(
                f"{self.name}: {str(base)!r} mixes the NIfTI and the MetaImage edition; keep them in folders of their "
                "own"
            )
        parts = self._parts(base, volumes)
        warnings: list[str] = []
        samples = self._older(base, parts, warnings) if older else self._sequences(base, parts)
        phantom = is_phantom(root, base, base.parent)
        found = len({sample.patient_id for sample in samples})
        if found != PATIENTS and not phantom:
            warnings.append(f"{self.name}: {found} patients found, {PATIENTS} documented")
        warnings += count_warnings(self, len(samples), phantom)
        return Index(base, tuple(samples), fingerprint(base, [*volumes, *others]), phantom, tuple(warnings))

    def read(self, index: Index, sample: Sample) -> Picture:
        """Image and label map; in order, each sequence is decoded once.

        Raises:
            UnreadableFile, SizeMismatch: A damaged file, or an image and its mask of different shapes.
            BadMaskValues, EmptyMask: Mask values other than 0 to 3, or none but 0.
        """
        with naming(self, index.root):
            images, masks = self._sequence(index.root, sample)
            # In the older edition a sample is a whole file, of one frame.
            number = 0 if sample.sample_id == sample.path else sample.frame_index or 0
            if number >= len(images):
                raise UnreadableFile(f"{sample.path!r} ends after {len(images)} frames, frame {number} was expected")
            if not masks[number].any():
                raise EmptyMask(f"{sample.mask_paths[0]!r} marks nothing in frame {number}; copy or download it again")
        return Picture(images[number], masks[number])

    def published_folds(self, index: Index) -> list[int] | None:
        """Five folds from the ten official sub-groups of 50 patients, two in each; None without their list.

        The list is `subgroups_testing.json` beside the patients: `{"subGroup1": ["patient0001", ...], ...}`.

        Raises:
            LayoutError: The list does not assign every patient once.
        """
        path = index.root / SUBGROUPS
        if not path.is_file():
            return None
        with naming(self, index.root):
            groups = read_json(path, root=index.root)
        try:
            fold_of = {
                patient: (int(name.removeprefix("subGroup")) - 1) // 2
                for name, patients in groups.items()
                for patient in patients
            }
            return [fold_of[sample.patient_id or ""] for sample in index.samples]
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise LayoutError(
                f"{self.name}: {str(path)!r} does not give every patient a sub-group; expected "
                '{"subGroup1": ["patient0001", ...], ...}: copy it again or remove it'
            ) from error

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """About `count` frames: patients with two half sequences, in the NIfTI edition."""
        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        frames = max(2, min(FRAMES, count // 12))
        patients = max(1, round(count / (2 * frames)))
        base = root / "database_nifti"
        kinds = ["2ch", "4ch"] * patients
        owners = [patient for patient in range(patients) for _ in VIEWS]
        for clip in clips("heart", self.name, kinds, frames=frames, size=size, seed=seed, patients=owners, beats=0.5):
            folder = base / f"patient{clip.patient + 1:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            _write_view(folder, clip)

    # ---- what is there

    def _has_patients(self, folder: Path) -> bool:
        return any(
            is_folder(child)
            and (re.fullmatch(r"patient\d+", child.name) or (child.name == "training" and self._has_patients(child)))
            for child in visible(self, folder)
        )

    def _refuse_repacked(self, root: Path) -> None:
        found = [child.name for child in visible(self, root) if child.suffix.lower() in REPACKED]
        if found:
            raise WrongVersion(
                f"{self.name}: {str(root)!r} holds {first_names(found)}, a re-packed edition that loses headers and "
                f"patients; needed: the NIfTI edition (or the challenge's .mhd files); {self.how_to_get}"
            )

    def _parts(self, base: Path, files: list[File]) -> dict[tuple[str, str], dict[str, File]]:
        """Files of each patient and view, by `ED`, `ED_gt`, `half_sequence`, ..."""
        parts: dict[tuple[str, str], dict[str, File]] = {}
        strange: list[str] = []
        for file in files:
            match = NAME.fullmatch(file.name)
            if match is None or not file.folder.endswith(match["patient"]):
                strange.append(file.path)
                continue
            view = parts.setdefault((match["patient"], match["view"]), {})
            other = view.setdefault(match["part"] + (match["gt"] or ""), file)
            if other is not file:
                raise DuplicateId(
                    f"{self.name}: {other.path!r} and {file.path!r} in {str(base)!r} have one id; remove one"
                )
        if strange:
            raise LayoutError(
                f"{self.name}: {len(strange)} files in {str(base)!r} are not named as "
                f"'patient0001/patient0001_2CH_half_sequence.nii.gz': {first_names(strange)}; use the official files"
            )
        if not parts:
            raise LayoutError(f"{self.name}: no .nii, .nii.gz or .mhd file in {str(base)!r}; {self.how_to_get}")
        return parts

    def _sequences(self, base: Path, parts: dict[tuple[str, str], dict[str, File]]) -> list[Sample]:
        required = ("half_sequence", "half_sequence_gt")
        self._check_files(base, parts, required)
        samples = []
        for (patient, view), files in parts.items():
            image, mask = (files[part] for part in required)
            info = self._info(base, patient, view, image)
            with naming(self, base):
                shape, marked = (volume_header(base / file.path).shape for file in (image, mask))
            if shape != marked:
                raise SizeMismatch(
                    f"{self.name}: {image.path!r} in {str(base)!r} has the shape {shape}, its mask {marked} (frames, "
                    "height, "
                    "width); both must be of one shape"
                )
            if shape[0] != info.frames:
                raise CountMismatch(
                    f"{self.name}: {image.path!r} in {str(base)!r} has {shape[0]} frames, Info_{view}.cfg says "
                    f"{info.frames}; copy both again"
                )
            video = f"{patient}_{view}"
            samples += [
                Sample(
                    sample_id=f"{image.path}#{frame}",
                    group_id=patient,
                    path=image.path,
                    mask_paths=(mask.path,),
                    video_id=video,
                    frame_index=frame,
                    patient_id=patient,
                )
                for frame in range(shape[0])
            ]
        return samples

    def _older(self, base: Path, parts: dict[tuple[str, str], dict[str, File]], warnings: list[str]) -> list[Sample]:
        """End-diastole and end-systole of the annotated patients."""
        hidden = {patient for (patient, _), files in parts.items() if not any(part.endswith("_gt") for part in files)}
        marked = {key: files for key, files in parts.items() if key[0] not in hidden}
        if not marked:
            raise MissingMask(
                f"{self.name}: {len(hidden)} patients but not one mask (_gt.mhd) in {str(base)!r}; {self.how_to_get}"
            )
        warnings.append(
            f"{self.name}: the older MetaImage edition: only end-diastole and end-systole are annotated and used"
            + (f"; {len(hidden)} patients without masks are left out" if hidden else "")
        )
        self._check_files(base, marked, ("ED", "ED_gt", "ES", "ES_gt"))
        samples = []
        for (patient, view), files in marked.items():
            info = self._info(base, patient, view, files["ED"])
            for part, frame in (("ED", info.diastole), ("ES", info.systole)):
                samples.append(
                    Sample(
                        sample_id=files[part].path,
                        group_id=patient,
                        path=files[part].path,
                        mask_paths=(files[f"{part}_gt"].path,),
                        video_id=f"{patient}_{view}",
                        frame_index=frame,
                        patient_id=patient,
                    )
                )
        return samples

    def _check_files(
        self, base: Path, parts: dict[tuple[str, str], dict[str, File]], required: tuple[str, ...]
    ) -> None:
        """Both views of every patient with all files."""
        patients = dict.fromkeys(patient for patient, _ in parts)
        missing: list[str] = []
        orphans: list[str] = []
        for patient in patients:
            for view in VIEWS:
                files = parts.get((patient, view), {})
                for part in required:
                    if part not in files:
                        image = part.removesuffix("_gt")
                        target = orphans if image == part and f"{part}_gt" in files else missing
                        target.append(f"{patient}_{view}_{part}")
        if missing:
            raise MissingMask(
                f"{self.name}: {len(missing)} files of {len(patients)} patients are missing in {str(base)!r}: "
                f"{first_names(missing)}; each patient needs {', '.join(required)} of 2CH and 4CH; {self.how_to_get}"
            )
        if orphans:
            raise OrphanMask(
                f"{self.name}: {len(orphans)} masks without an image in {str(base)!r}: {first_names(orphans)}; "
                f"add the images or remove the masks"
            )

    def _info(self, base: Path, patient: str, view: str, image: File) -> _View:
        """What `Info_2CH.cfg` says beside `image`; ED and ES count from 1 in the file."""
        path = base / image.folder / f"Info_{view}.cfg"
        try:
            values = read_fields(path, root=base)
        except UnreadableFile as error:
            raise LayoutError(f"{self.name}: {error}; it says which frames are ED and ES; {self.how_to_get}") from error
        try:
            diastole, systole, frames = (int(values[key]) for key in ("ED", "ES", "NbFrame"))
        except (KeyError, ValueError) as error:
            raise LayoutError(
                f"{self.name}: {str(path)!r} has no number for ED, ES or NbFrame; copy or download it again"
            ) from error
        if not (1 <= diastole <= frames and 1 <= systole <= frames):
            raise CountMismatch(
                f"{self.name}: {str(path)!r} says ED {diastole} and ES {systole} of {frames} frames; expected 1 to "
                f"{frames}"
            )
        return _View(patient, view, frames, diastole - 1, systole - 1)

    def _sequence(self, root: Path, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        path = root / sample.path
        if self._open is None or self._open[0] != path:
            images, masks = read_volume(path), read_volume(root / sample.mask_paths[0])
            if images.shape != masks.shape:
                raise SizeMismatch(
                    f"{sample.path!r} has the shape {images.shape}, its mask {masks.shape}; both must be of one shape"
                )
            self._open = path, _gray(images, sample.path), self._labels(masks, sample.mask_paths[0])
        return self._open[1], self._open[2]

    def _labels(self, masks: NDArray[Any], path: str) -> NDArray[np.uint8]:
        if masks.dtype.kind not in "biuf":
            raise BadMaskValues(f"{path!r} holds voxels of type {masks.dtype}; expected 0 to {len(self.structures)}")
        known = np.isin(masks, range(len(self.structures) + 1))
        if not known.all():
            odd = np.unique(masks[~known])[:5].tolist()
            raise BadMaskValues(f"{path!r} holds the values {odd}; expected 0 to {len(self.structures)}")
        labels: NDArray[np.uint8] = masks.astype(np.uint8)
        return labels


def _gray(images: NDArray[Any], path: str) -> NDArray[np.uint8]:
    if images.dtype.kind not in "biuf":
        raise UnreadableFile(f"{path!r} holds voxels of type {images.dtype}; expected gray levels from 0 to 255")
    check_gray(images, repr(path))
    levels: NDArray[np.uint8] = np.rint(images).astype(np.uint8)
    return levels


def _write_view(folder: Path, clip: Clip) -> None:
    """The files of one view: ED, ES and the half sequence with their masks, and the cfg."""
    view, stem = clip.view.upper(), f"{folder.name}_{clip.view.upper()}"
    last = len(clip.images) - 1
    diastole = clip.diastole if clip.diastole is not None else 0
    systole = clip.systole if clip.systole is not None else last
    for suffix, stack in (("", clip.images), ("_gt", clip.labels)):
        _write_nifti(folder / f"{stem}_half_sequence{suffix}.nii.gz", stack, clip.spacing)
        for part, frame in (("ED", diastole), ("ES", systole)):
            _write_nifti(folder / f"{stem}_{part}{suffix}.nii.gz", stack[frame], clip.spacing)
    fraction = 100 * (clip.ejection_fraction or 0)
    (folder / f"Info_{view}.cfg").write_text(
        f"ED: {diastole + 1}\nES: {systole + 1}\nNbFrame: {last + 1}\nSex: F\nAge: 60\nImageQuality: Good\n"
        f"EF: {fraction:.0f}\nFrameRate: {clip.fps:.1f}\n",
        encoding="utf-8",
    )


def _write_nifti(path: Path, stack: NDArray[np.uint8], spacing: tuple[float, float]) -> None:
    """(T, H, W) or (H, W), with axes X, Y[, T] in the file; the same bytes at any time."""
    import gzip

    import nibabel

    nifti: Any = nibabel.Nifti1Image
    image = nifti(np.ascontiguousarray(stack.T), np.diag([spacing[1], spacing[0], 1.0, 1.0]))
    image.header.set_zooms((spacing[1], spacing[0]) + (1.0,) * (stack.ndim - 2))
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


@hookimpl
def anaus_datasets() -> list[type[CAMUS]]:
    """CAMUS."""
    return [CAMUS]
