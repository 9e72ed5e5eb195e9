"""HMC-QU: echocardiography with the wall of the left ventricle marked over one cycle (Degerli et al., 2024).

109 of the videos of the apical four-chamber view are annotated. The masks are 224 x 224 pixels whatever the video's
size, with its aspect ratio lost.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from anaus_bench.datasets.layout import (
    check_root,
    check_unique,
    count_warnings,
    fingerprint,
    is_phantom,
    locate,
    start_phantoms,
)
from anaus_bench.datasets.listing import File, first_names, list_files, naming
from anaus_bench.datasets.matlab import matlab_shape, read_matlab
from anaus_bench.datasets.videos import VideoHeader, VideoReader, survey, write_video
from anaus_bench.datasets.workbooks import read_workbook
from anaus_bench.errors import (
    BadMaskValues,
    CountMismatch,
    DuplicateId,
    EmptyMask,
    LayoutError,
    MissingMask,
    OrphanMask,
    UnreadableFile,
    WrongVersion,
)
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image
from anaus_bench.settings.base import Settings

VIDEOS = "HMC-QU/A4C"
TABLE = "A4C.xlsx"
MASKS = "LV Ground-truth Segmentation Masks"
VARIABLE = "predicted"
TICK = "ü"  # in the font Wingdings
ANNOTATED = 109
SIDE = 224
FRAMES = 21  # of a generated cycle; fewer where that leaves few videos
HEADINGS = ("ECHO", "SEG1", "SEG2", "SEG3", "SEG5", "SEG6", "SEG7", "Reference Frame", "End of Cycle", MASKS)


class HMCQUSettings(Settings):
    """At which size image and mask meet."""

    resolution: Literal["masks", "videos"] = Field(
        "masks",
        description="masks: frames are resized to the masks' 224 x 224 pixels (the aspect ratio is lost); videos: "
        "masks are "
        "resized to the frames (nearest neighbour). Distances in pixels compare only at one of them.",
    )


@dataclass(frozen=True)
class _Cycle:
    """The annotated frames of a video, from 0: `first` to `last`, both included."""

    first: int
    last: int


class HMCQU(Dataset[HMCQUSettings]):
    """Frames of `HMC-QU/A4C/<ECHO>.avi` with the masks of `Mask_<ECHO>.mat`; a video is a group."""

    name = "hmcqu"
    settings_class = HMCQUSettings
    title = "HMC-QU echocardiography"
    structures = ("myocardium",)
    licence = "not stated"
    url = "https://www.kaggle.com/datasets/aysendegerli/hmcqu-dataset"
    how_to_get = (
        "Download https://www.kaggle.com/datasets/aysendegerli/hmcqu-dataset and unpack all of it; the root is the "
        "folder "
        f"that holds HMC-QU/, {TABLE} and '{MASKS}'."
    )
    expected_count = 2349
    reference = (
        "Degerli et al., Early myocardial infarction detection over multi-view echocardiography, "
        "Biomedical Signal Processing and Control 87, 2024, doi:10.1016/j.bspc.2023.105448"
    )

    def __init__(self, settings: HMCQUSettings) -> None:
        super().__init__(settings)
        self._videos = VideoReader()
        self._masks: tuple[Path, NDArray[np.uint8]] | None = None  # those read last
        self._first: tuple[Index, dict[str, int]] | None = None

    def scan(self, root: Path) -> Index:
        """The frames of all annotated cycles, from the table and the headers of videos and masks.

        Raises:
            DatasetNotFound, LayoutError: Root, videos or table missing, or a table that is not the official one.
            WrongVersion: Another edition, or masks of MATLAB 7.3.
            MissingMask, OrphanMask: The masks are not there, or do not fit the table or the videos.
            CountMismatch: Table, video and mask differ in their numbers of frames.
            UnreadableFile: The table, a video or a mask cannot be read.
        """
        self._masks = None
        check_root(self, root)
        self._refuse_older(root)
        base = locate(self, root, (), lambda folder: (folder / VIDEOS).is_dir(), f"the folder {VIDEOS}")
        if not (base / MASKS).is_dir():
            raise MissingMask(
                f"{self.name}: {str(base)!r} has the videos but not the folder {MASKS!r}; download that part as well: "
                f"{self.how_to_get}"
            )
        videos = list_files(self, base, base / VIDEOS, (".avi",))
        masks = list_files(self, base, base / MASKS, (".mat",))
        tables = [file for file in list_files(self, base, base, (".xlsx",)) if file.path == TABLE]
        check_unique(self, base, [*videos, *masks])
        if not tables:
            raise LayoutError(
                f"{self.name}: {TABLE!r} is missing in {str(base)!r}; it says which frames are annotated; "
                f"{self.how_to_get}"
            )
        cycles = self._cycles(base)
        video_of = {file.stem: file for file in videos}
        mask_of = {file.stem.removeprefix("Mask_"): file for file in masks}
        self._check_pairs(base, cycles, video_of, mask_of)
        clips = survey(self, base, [video_of[echo] for echo in cycles])
        samples = [
            Sample(
                sample_id=f"{video_of[echo].path}#{frame}",
                group_id=echo,
                path=video_of[echo].path,
                mask_paths=(mask_of[echo].path,),
                video_id=echo,
                frame_index=frame,
                patient_id=echo,
            )
            for echo, cycle in cycles.items()
            if video_of[echo].path not in clips.unreadable
            for frame in self._frames(base, cycle, clips.headers[video_of[echo].path], video_of[echo], mask_of[echo])
        ]
        phantom = is_phantom(root, base)
        warnings = [*count_warnings(self, len(samples), phantom), *clips.warnings]
        if len(cycles) != ANNOTATED and not phantom:
            warnings.append(f"{self.name}: {len(cycles)} annotated videos found, {ANNOTATED} documented")
        used = [*(video_of[echo] for echo in cycles), *masks, *tables]
        return Index(base, tuple(samples), fingerprint(base, used), phantom, tuple(warnings), clips.unreadable)

    def read(self, index: Index, sample: Sample) -> Picture:
        """A frame and its mask, at the size that the setting `resolution` says; in order, each file is decoded once.

        Raises:
            UnreadableFile: A damaged file, or a video that ends before the frame.
            BadMaskValues, EmptyMask: Mask values other than 0 and 1, or none but 0.
        """
        number = sample.frame_index or 0
        with naming(self, index.root):
            image = self._videos.frame(index.root / sample.path, number)
            mask = self._mask(index.root / sample.mask_paths[0])[number - self._starts(index)[sample.path]]
        if not mask.any():
            raise EmptyMask(
                f"{self.name} in {str(index.root)!r}: {sample.mask_paths[0]!r} marks nothing in frame {number} of the "
                "video; download it again"
            )
        if self.settings.resolution == "masks":
            shape = (mask.shape[1], mask.shape[0])
            image = np.array(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR), dtype=np.uint8)
        else:
            shape = (image.shape[1], image.shape[0])
            mask = np.array(Image.fromarray(mask).resize(shape, Image.Resampling.NEAREST), dtype=np.uint8)
        return Picture(image, mask)

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """About `count` annotated frames: two of three patients with an infarct; one more video is not annotated."""
        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        for folder in (VIDEOS, MASKS):
            (root / folder).mkdir(parents=True)
        frames = max(2, min(FRAMES, count // 6))
        annotated = max(1, round(count / frames))
        kinds = ["4ch" if patient % 3 == 2 else "4ch-infarct" for patient in range(annotated + 1)]
        rows: list[tuple[Any, ...]] = [HEADINGS]
        for clip in clips("heart", self.name, kinds, frames=frames + 2, size=size, seed=seed):
            echo = f"ES{clip.patient + 1:04d}_4CH_1"
            write_video(root / VIDEOS / f"{echo}.avi", clip.images, 25)
            segments = ["MI" if clip.infarct and column == 0 else "non-MI" for column in range(6)]
            if clip.patient == annotated:
                rows.append((echo, *segments, None, None, None))
                continue
            wall = clip.structures.index("myocardium") + 1
            _write_masks(root / MASKS / f"Mask_{echo}.mat", clip.labels[1:-1] == wall)
            rows.append((echo, *segments, 2, frames + 1, TICK))
        _write_table(root / TABLE, rows)

    # ---- what is there

    def _refuse_older(self, root: Path) -> None:
        older = [name for name in ("HMC-QU Echos", "HMC_QU.xlsx") if (root / name).exists()]
        if older:
            raise WrongVersion(
                f"{self.name}: {str(root)!r} holds {first_names(older)}, the first edition, of one view; needed: the "
                "edition "
                f"with {VIDEOS}/ and {TABLE}; {self.how_to_get}"
            )

    def _cycles(self, base: Path) -> dict[str, _Cycle]:
        """The annotated cycle of each ticked video: the last three columns count frames from 1, and tick."""
        path = base / TABLE
        with naming(self, base):
            rows = read_workbook(path, root=base)
        heading = [cell for cell in rows[0] if cell is not None] if rows else []
        if len(heading) < 4 or str(heading[0]).strip().upper() != "ECHO":
            raise LayoutError(
                f"{self.name}: {str(path)!r} begins with {first_names([str(cell) for cell in heading])}; expected the "
                f"columns ECHO, the segments, first frame, last frame and a tick; {self.how_to_get}"
            )
        cycles: dict[str, _Cycle] = {}
        for row in rows[1:]:
            cells = (*row, *[None] * len(heading))[: len(heading)]
            echo, first, last = str(cells[0]).strip(), cells[-3], cells[-2]
            if str(cells[-1]).strip() != TICK:
                continue
            if echo in cycles:
                raise DuplicateId(f"{self.name}: {str(path)!r} lists {echo!r} twice; remove one row")
            try:
                cycles[echo] = _Cycle(int(first) - 1, int(last) - 1)
            except (TypeError, ValueError) as error:
                raise LayoutError(
                    f"{self.name}: {str(path)!r} gives {echo!r} the frames {first!r} to {last!r}; expected two numbers"
                ) from error
            if not 0 <= cycles[echo].first <= cycles[echo].last:
                raise CountMismatch(f"{self.name}: {str(path)!r} gives {echo!r} the frames {first} to {last}, from 1")
        if not cycles:
            raise LayoutError(f"{self.name}: {str(path)!r} ticks no video as annotated ({TICK!r}); {self.how_to_get}")
        return cycles

    def _check_pairs(
        self, base: Path, cycles: dict[str, _Cycle], video_of: dict[str, File], mask_of: dict[str, File]
    ) -> None:
        missing = [echo for echo in cycles if echo not in mask_of]
        if missing:
            raise MissingMask(
                f"{self.name}: {len(cycles) - len(missing)} of {len(cycles)} masks found in {str(base / MASKS)!r}; "
                "none for "
                f"{first_names(missing)}; {self.how_to_get}"
            )
        orphans = [file.path for echo, file in mask_of.items() if echo not in cycles or echo not in video_of]
        if orphans:
            raise OrphanMask(
                f"{self.name}: {len(orphans)} masks without a video in {VIDEOS}/ or a tick in {TABLE} in "
                f"{str(base)!r}: "
                f"{first_names(orphans)}; add the videos or remove the masks"
            )

    def _frames(self, base: Path, cycle: _Cycle, header: VideoHeader, video: File, mask: File) -> range:
        """Numbers of the annotated frames; the three sources must agree."""
        with naming(self, base):
            shape = matlab_shape(base / mask.path, VARIABLE)
        count, found = cycle.last - cycle.first + 1, header.frames
        if found <= cycle.last < header.promised:
            raise UnreadableFile(
                f"{self.name}: {video.path!r} in {str(base)!r} ends after {found} of the {header.promised} frames that "
                "its header promises; copy or download it again"
            )
        if cycle.last >= found:
            raise CountMismatch(
                f"{self.name}: {video.path!r} in {str(base)!r} has {found} frames, {TABLE} says that its cycle ends "
                "with "
                f"frame {cycle.last + 1}; copy both again"
            )
        if shape[0] != count:
            raise CountMismatch(
                f"{self.name}: {mask.path!r} in {str(base)!r} has {shape[0]} frames, {TABLE} says {count}; copy both "
                "again"
            )
        return range(cycle.first, cycle.last + 1)

    def _starts(self, index: Index) -> dict[str, int]:
        """First annotated frame of each video of an index."""
        if self._first is None or self._first[0] is not index:
            first: dict[str, int] = {}
            for sample in index.samples:
                first[sample.path] = min(first.get(sample.path, sample.frame_index or 0), sample.frame_index or 0)
            self._first = index, first
        return self._first[1]

    def _mask(self, path: Path) -> NDArray[np.uint8]:
        """(F, 224, 224) uint8 in {0, 1}."""
        if self._masks is None or self._masks[0] != path:
            stack = read_matlab(path, VARIABLE)
            if stack.dtype.kind not in "biuf" or not np.isin(stack, (0, 1)).all():
                odd = np.unique(stack)[:5].tolist() if stack.dtype.kind in "biuf" else stack.dtype
                raise BadMaskValues(f"{str(path)!r} holds the values {odd}; expected 0 and 1")
            self._masks = path, stack.astype(np.uint8)
        return self._masks[1]


def _write_masks(path: Path, masks: NDArray[np.bool_]) -> None:
    """(F, H, W), resized to 224 x 224, as MATLAB 5; the date in the header is left blank."""
    from scipy.io import savemat

    resized = [
        np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST))
        for mask in masks
    ]
    content = BytesIO()
    savemat(content, {VARIABLE: np.stack(resized)}, do_compression=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + content.getvalue()[116:])


def _write_table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    """An Excel file whose dates are fixed, so that the same rows give the same bytes."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    content = BytesIO()
    book.save(content)
    with zipfile.ZipFile(content) as dated, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as fixed:
        for name in dated.namelist():
            text = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2000-01-01T00:00:00Z", dated.read(name))
            fixed.writestr(zipfile.ZipInfo(name), text)


@hookimpl
def anaus_datasets() -> list[type[HMCQU]]:
    """HMC-QU."""
    return [HMCQU]
