"""POCUS: lung ultrasound of COVID-19, bacterial pneumonia and healthy lungs (Born et al., 2021).

Two forms are read: the repository's videos and images, of which frames are sampled as its authors do, and the five
pickled folds of USCL, which hold frames without saying from which video.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from anaus_bench.datasets.images import read_picture
from anaus_bench.datasets.layout import IMAGE_SUFFIXES, check_unique, fingerprint, is_phantom, locate, start_phantoms
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, naming, normal, visible
from anaus_bench.datasets.pickles import read_arrays
from anaus_bench.datasets.pixels import check_gray
from anaus_bench.datasets.text import read_table
from anaus_bench.datasets.videos import VIDEO_SUFFIXES, Survey, VideoReader, is_video, survey, write_video
from anaus_bench.errors import CountMismatch, LabelError, LayoutError, UnreadableFile
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image
from anaus_bench.settings.base import Settings

LABELS = {"cov": 0, "pne": 1, "reg": 2}
VIRAL = "vir"  # too few; the task has three classes
FOLDERS = ("pocus_videos", "pocus_images")
PROBES = ("convex", "linear")
UNCERTAIN = "label_uncertain"
TABLE = "dataset_metadata.csv"
FOLDS = 5
BUTTERFLY = re.compile(r"[a-z]+[ _-]butterfly[ _-]", re.IGNORECASE)
SET = re.compile(r"northumbria.*_set\d+", re.IGNORECASE)  # several clips of one examination
SUFFIXES = (".mp4", ".avi", ".mov", ".gif")  # of generated videos, in turn
FRAMES = 12  # of a generated video; fewer where that leaves few videos


class POCUSSettings(Settings):
    """Which frames are used; the defaults are those of the data set's authors (pocovidnet)."""

    probe: Literal["convex", "linear", "both"] = Field("convex", description="Which probes' files are used.")
    rate: float = Field(
        3.0,
        description="Frames a second that are taken of a video: every int(fps / rate)-th, at least 1. Unit: Hz.",
        gt=0,
    )
    max_frames: int = Field(30, description="At most this many frames of a video, from its start. Unit: frames.", ge=1)
    exclude_overlap: bool = Field(
        False,
        description="Leave out the clips of the Butterfly gallery (Cov-Butterfly-..., Reg-Butterfly-...), which the "
        "corpus "
        "butterfly holds as well.",
    )


class POCUS(Dataset[POCUSSettings]):
    """`pocus_videos/convex/Cov-....mp4` and `pocus_images/convex/....jpg`, or `covid_data{1..5}.pkl`."""

    name = "pocus"
    settings_class = POCUSSettings
    title = "POCUS lung ultrasound"
    classes = ("covid19", "pneumonia", "regular")
    licence = "per file, in dataset_metadata.csv; many non-commercial"
    url = "https://github.com/jannisborn/covid19_ultrasound"
    how_to_get = (
        "Clone https://github.com/jannisborn/covid19_ultrasound (with git lfs) and take its folder data, or take "
        "covid_5_fold from the link in the README of https://github.com/983632847/USCL; that folder is the root."
    )
    reference = (
        "Born et al., Accelerating detection of lung pathologies with explainable ultrasound image analysis, "
        "Applied Sciences 11(2), 2021, doi:10.3390/app11020672"
    )

    def __init__(self, settings: POCUSSettings) -> None:
        super().__init__(settings)
        self._videos = VideoReader()
        self._fold: tuple[Path, NDArray[np.generic]] | None = None  # the images of the pickle read last

    def scan(self, root: Path) -> Index:
        """The sampled frames; of a video only the container is read, of a pickle only shapes and labels.

        Raises:
            DatasetNotFound, LayoutError: Root or folders missing, no file, or not all five pickles.
            LabelError: A name that begins with none of Cov, Pne, Reg and Vir; or an unknown label in a pickle.
            DuplicateId: A file in two formats.
            WrongVersion: A pickle that holds more than arrays.
            CountMismatch, UnreadableFile: Images and labels of a pickle differ in number; a damaged file.
        """
        self._fold = None
        base = locate(
            self,
            root,
            ("data", "covid_5_fold"),
            lambda folder: (
                any(is_folder(folder / name) for name in FOLDERS)
                or any(re.fullmatch(r"covid_data.*\.pkl", path.name) for path in visible(self, folder))
            ),
            "the folders pocus_videos or pocus_images (or covid_data1.pkl to covid_data5.pkl)",
        )
        if not any(is_folder(base / name) for name in FOLDERS):
            return self._pickled(base, is_phantom(root, base))
        return self._repository(base, is_phantom(root, base))

    def read(self, index: Index, sample: Sample) -> Picture:
        """The image or frame; no mask.

        Raises:
            UnreadableFile: The file cannot be decoded, or a video ends before the frame.
        """
        path = index.root / sample.path
        with naming(self, index.root):
            if path.suffix == ".pkl":
                return Picture(self._pickled_image(path, int(sample.sample_id.rpartition("#")[2])))
            if is_video(sample.path) and sample.frame_index is not None:
                return Picture(self._videos.frame(path, sample.frame_index))
            return read_picture(index.root, sample.path, ())

    def published_folds(self, index: Index) -> list[int] | None:
        """USCL's fold of each image of its pickles; None for the repository, whose own folds split patients."""
        if not all(sample.path.endswith(".pkl") for sample in index.samples):
            return None
        return [_fold_number(sample.path) - 1 for sample in index.samples]

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """About `count` frames in the repository's form: two clips of each patient, as videos in four containers.

        Where that would leave few patients, a clip is one image. All lie under `convex/`, whichever probe is simulated,
        so that the default settings find them.
        """
        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        for folder in FOLDERS:
            (root / folder / "convex").mkdir(parents=True)
        frames = max(1, min(FRAMES, count // 30))
        patients = max(3, round(count / (2 * frames)))
        kinds = [("covid", "pneumonia", "regular")[clip // 2 % 3] for clip in range(2 * patients)]
        owners = [clip // 2 for clip in range(2 * patients)]
        rows = []
        made = clips("lung", self.name, kinds, frames=frames, size=size, seed=seed, patients=owners)
        for number, clip in enumerate(made):
            prefix = {"covid": "Cov", "pneumonia": "Pneu", "regular": "Reg"}[clip.kind]
            stem = f"{prefix}_phantom+({clip.patient})_clip{clip.video}"
            if frames == 1:
                Image.fromarray(clip.images[0]).save(root / "pocus_images" / "convex" / f"{stem}.jpg", quality=90)
            else:
                path = root / "pocus_videos" / "convex" / f"{stem}{SUFFIXES[number % len(SUFFIXES)]}"
                write_video(path, clip.images, round(self.settings.rate))
            rows.append((stem, clip.kind, clip.patient))
        with (root / TABLE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("Filename", "Label", "Patient ID / Name"), *rows])

    # ---- the repository's form

    def _repository(self, base: Path, phantom: bool) -> Index:
        probes = PROBES if self.settings.probe == "both" else (self.settings.probe,)
        files = [
            file
            for folder in FOLDERS
            for probe in probes
            if is_folder(base / folder / probe)
            for file in list_files(self, base, base / folder / probe, IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            if UNCERTAIN not in file.folder.split("/")
        ]
        if not files:
            raise LayoutError(
                f"{self.name}: no image or video of {' or '.join(probes)} in {str(base)!r}; {self.how_to_get}"
            )
        check_unique(self, base, files)
        unknown = [file.path for file in files if _prefix(file) not in (*LABELS, VIRAL)]
        if unknown:
            raise LabelError(
                f"{self.name}: {len(unknown)} files in {str(base)!r} begin with none of Cov, Pne, Reg and Vir: "
                f"{first_names(unknown)}; name them by their class"
            )
        warnings: list[str] = []
        viral = [file.path for file in files if _prefix(file) == VIRAL]
        if viral:
            warnings.append(
                f"{self.name}: {len(viral)} files of viral pneumonia are left out: the task has three classes"
            )
        shared = [file for file in files if BUTTERFLY.match(file.name)]
        if shared:
            state = (
                "left out"
                if self.settings.exclude_overlap
                else "used; --set data.pocus.exclude_overlap=true leaves them out"
            )
            warnings.append(
                f"{self.name}: {len(shared)} clips are of the Butterfly gallery, as in the corpus butterfly: {state}"
            )
        dropped = {*viral, *(file.path for file in shared if self.settings.exclude_overlap)}
        used = [file for file in files if file.path not in dropped]
        patients = self._patients(base, files, warnings)
        clips = survey(self, base, [file for file in used if is_video(file.path)])
        samples = [
            sample
            for file in used
            if file.path not in clips.unreadable
            for sample in self._samples(file, clips, patients)
        ]
        warnings += clips.warnings
        table = [file for file in list_files(self, base, base, (TABLE,)) if file.path == TABLE]
        content = fingerprint(base, [*files, *table])
        return Index(base, tuple(samples), content, phantom, tuple(warnings), clips.unreadable)

    def _patients(self, base: Path, files: list[File], warnings: list[str]) -> dict[str, str]:
        """Patient by the lower-case name of the file without its suffix."""
        path = base / TABLE
        if not path.is_file():
            warnings.append(
                f"{self.name}: {TABLE!r} is missing in {str(base)!r}; files are grouped by video, not by patient"
            )
            return {}
        with naming(self, base):
            table = read_table(path, ("Filename", "Patient ID / Name"), root=base)
        rows = [(normal(row["Filename"].lower()), row["Patient ID / Name"]) for row in table]
        if not {name for name, _ in rows} & {name for file in files for name in _names(file)}:
            raise LayoutError(
                f"{self.name}: {str(path)!r} names not one file of {str(base)!r} in its column 'Filename' (first: "
                f"{first_names([name for name, _ in rows], 3) or 'no row'}); use the official file, or remove it"
            )
        return {name: patient for name, patient in rows if name and patient.lower() not in ("", "n/a", "nan", "none")}

    def _samples(self, file: File, clips: Survey, patients: dict[str, str]) -> Iterator[Sample]:
        patient = next((patients[name] for name in _names(file) if name in patients), None)
        group = f"patient {patient}" if patient else file.path
        if examination := SET.search(file.stem):
            group = examination[0].lower()
        label = LABELS[_prefix(file)]
        if not is_video(file.path):
            yield Sample(file.path, group, file.path, label=label, patient_id=patient)
            return
        header = clips.headers[file.path]
        every = max(1, int(header.rate / self.settings.rate))
        for frame in range(0, header.frames, every)[: self.settings.max_frames]:
            yield Sample(
                sample_id=f"{file.path}#{frame}",
                group_id=group,
                path=file.path,
                label=label,
                video_id=file.path,
                frame_index=frame,
                patient_id=patient,
            )

    # ---- USCL's form

    def _pickled(self, base: Path, phantom: bool) -> Index:
        files = [
            file for file in list_files(self, base, base, (".pkl",)) if re.fullmatch(r"covid_data[1-5]\.pkl", file.path)
        ]
        if len(files) != FOLDS:
            raise LayoutError(
                f"{self.name}: {len(files)} of {FOLDS} pickles in {str(base)!r}: "
                f"{first_names([file.path for file in files])}; "
                f"expected covid_data1.pkl to covid_data5.pkl; {self.how_to_get}"
            )
        samples = []
        for file in files:
            with naming(self, base):
                labels = self._pickled_labels(base / file.path)
            # The pickle does not say which frames are of one video, only that no video is in two folds.
            samples += [
                Sample(f"{file.path}#{row}", file.path, file.path, label=label) for row, label in enumerate(labels)
            ]
        return Index(base, tuple(samples), fingerprint(base, files), phantom)

    def _pickled_labels(self, path: Path) -> list[int]:
        """Classes of the held-out images of a fold: the tuple is (X_train, y_train, X_test, y_test)."""
        arrays = read_arrays(path, content=False)
        shapes = [array.shape for array in arrays]
        if len(arrays) != 4 or len(shapes[2]) != 4 or shapes[2][1] not in (1, 3) or len(shapes[3]) != 1:
            raise UnreadableFile(
                f"{str(path)!r} holds arrays of shapes {shapes}; expected X [N,C,H,W] and y [N], twice"
            )
        if shapes[2][0] != shapes[3][0]:
            raise CountMismatch(
                f"{str(path)!r} holds {shapes[2][0]} test images but {shapes[3][0]} labels; take it again"
            )
        found = np.unique(arrays[3])
        odd = [value for value in found.tolist() if value not in LABELS.values() or isinstance(value, bool)]
        if odd:
            raise LabelError(f"{str(path)!r} has the labels {odd[:5]}; known: 0 covid19, 1 pneumonia, 2 regular")
        return [int(label) for label in arrays[3]]

    def _pickled_image(self, path: Path, row: int) -> NDArray[np.uint8]:
        if self._fold is None or self._fold[0] != path:
            images = read_arrays(path)[2].copy()  # a copy lets go of the training images
            check_gray(images, repr(str(path)))
            self._fold = path, images
        image = self._fold[1][row]
        levels: NDArray[np.uint8] = np.rint(image).astype(np.uint8)
        if len(levels) == 1:
            return np.ascontiguousarray(levels[0])
        return np.array(Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0))).convert("L"), dtype=np.uint8)


def _names(file: File) -> tuple[str, str]:
    """What the table may call a file."""
    return file.stem.lower(), normal(file.name.lower())


def _prefix(file: File) -> str:
    return file.name[:3].lower()


def _fold_number(path: str) -> int:
    return int(path.removesuffix(".pkl")[-1])


@hookimpl
def anaus_datasets() -> list[type[POCUS]]:
    """POCUS."""
    return [POCUS]
