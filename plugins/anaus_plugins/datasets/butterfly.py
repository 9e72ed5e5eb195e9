"""Butterfly: lung ultrasound clips of the Butterfly Network's COVID-19 gallery, an unlabelled corpus.

Read as folders of frames (the form that USCL passes on) or as the original video files. Some of these clips are part of
POCUS as well, under names with `Butterfly`: whoever tests on POCUS must leave them out of one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anaus_bench.datasets.images import read_picture
from anaus_bench.datasets.layout import (
    IMAGE_SUFFIXES,
    check_root,
    check_unique,
    count_warnings,
    fingerprint,
    is_phantom,
    locate,
    start_phantoms,
)
from anaus_bench.datasets.listing import File, first_names, is_folder, list_files, naming, visible
from anaus_bench.datasets.videos import VIDEO_SUFFIXES, Survey, VideoReader, is_video, survey
from anaus_bench.errors import CountMismatch, LayoutError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings

LABELS = {"reg": 0, "cov": 1}
LEAST_FRAMES = 2  # methods that learn from clips take pairs of frames
VIDEOS = 22
FRAMES = 70  # of a generated clip; fewer where that leaves few clips


class Butterfly(Dataset[Settings]):
    """`<Label>-<title>_mp4/<Label>-<title>_mp4_frame<k>.jpg`, or video files; a clip is one group."""

    name = "butterfly"
    title = "Butterfly lung ultrasound"
    classes = ("regular", "covid")
    licence = "none stated; the authors of POCUS say that it may not be redistributed"
    url = "https://github.com/983632847/USCL"
    how_to_get = (
        "Take the Butterfly frames from the link in the README of https://github.com/983632847/USCL, or the videos of "
        "the "
        "COVID-19 gallery of Butterfly Network; the root is the folder that holds one folder (or video) for each clip."
    )
    expected_count = 1533
    reference = "Chen et al., USCL: Pretraining deep ultrasound image diagnosis model, MICCAI 2021, arXiv:2011.13066"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._videos = VideoReader()

    def scan(self, root: Path) -> Index:
        """All frames, those of a folder in numeric order; of a video only the container is read.

        Raises:
            DatasetNotFound, LayoutError: Root missing or empty, no clip in it, or frames without a folder.
            DuplicateId: A frame in two formats.
            CountMismatch: A clip of one frame.
            UnreadableFile: A video cannot be opened.
        """
        check_root(self, root)
        loose = [child.name for child in visible(self, root) if child.suffix.lower() in IMAGE_SUFFIXES]
        if loose:
            raise LayoutError(
                f"{self.name}: {str(root)!r} holds {len(loose)} images without a folder: {first_names(loose)}; "
                "each clip must be a folder of its own, or the clips cannot be told apart"
            )
        base = locate(self, root, (), self._has_clips, "one folder of frames, or one video file, for each clip")
        files = list_files(self, base, base, IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        check_unique(self, base, files)
        clips = survey(self, base, [file for file in files if is_video(file.path)])
        with naming(self, base):
            samples = [
                sample
                for clip, frames in _clips(files).items()
                if clip not in clips.unreadable
                for sample in self._frames(clip, frames, clips)
            ]
        phantom = is_phantom(root)
        warnings = (*self._warnings(samples, phantom), *clips.warnings)
        return Index(base, tuple(samples), fingerprint(base, files), phantom, warnings, clips.unreadable)

    def read(self, index: Index, sample: Sample) -> Picture:
        """The frame; no mask.

        Raises:
            UnreadableFile: The file cannot be decoded, or a video ends before the frame.
        """
        path = index.root / sample.path
        with naming(self, index.root):
            if is_video(sample.path) and sample.frame_index is not None:
                return Picture(self._videos.frame(path, sample.frame_index))
            return read_picture(index.root, sample.path, ())

    def write_phantoms(self, root: Path, count: int, size: int, seed: int) -> None:
        """About `count` frames of clips whose classes take turns, as JPEG of quality 90."""
        from PIL import Image

        from anaus_bench.simulator.phantoms import clips

        start_phantoms(self, root, size, seed)
        frames = max(3, min(FRAMES, count // 10))
        kinds = [("covid", "regular")[number % 2] for number in range(max(2, round(count / frames)))]
        for clip in clips("lung", self.name, kinds, frames=frames, size=size, seed=seed):
            prefix = "Cov" if clip.kind == "covid" else "Reg"
            folder = root / f"{prefix}-phantom lung {clip.patient + 1}_mp4"
            folder.mkdir()
            for number, image in enumerate(clip.images):
                Image.fromarray(image).save(folder / f"{folder.name}_frame{number}.jpg", quality=90)

    def _has_clips(self, folder: Path) -> bool:
        return any(
            child.suffix.lower() in VIDEO_SUFFIXES
            or (is_folder(child) and any(file.suffix.lower() in IMAGE_SUFFIXES for file in visible(self, child)))
            for child in visible(self, folder)
        )

    def _frames(self, clip: str, files: list[File], clips: Survey) -> list[Sample]:
        label = LABELS.get(clip.rpartition("/")[2][:3].lower())
        if is_video(clip):
            frames = [(f"{clip}#{frame}", clip) for frame in range(clips.headers[clip].frames)]
        else:
            frames = [(file.path, file.path) for file in files]
        if len(frames) < LEAST_FRAMES:
            raise CountMismatch(
                f"the clip {clip!r} has {len(frames)} frame, at least {LEAST_FRAMES} are needed; copy it again or "
                "remove it"
            )
        return [
            Sample(sample_id, clip, path, label=label, video_id=clip, frame_index=number)
            for number, (sample_id, path) in enumerate(frames)
        ]

    def _warnings(self, samples: list[Sample], phantom: bool) -> tuple[str, ...]:
        clips = {sample.video_id or "": sample.label for sample in samples}
        warnings = list(count_warnings(self, len(samples), phantom))
        if len(clips) != VIDEOS and not phantom:
            warnings.append(f"{self.name}: {len(clips)} clips found, {VIDEOS} documented")
        unknown = [clip for clip, label in clips.items() if label is None]
        if unknown:
            warnings.append(
                f"{self.name}: {len(unknown)} clips begin with neither Cov nor Reg and have no class: "
                f"{first_names(unknown)}"
            )
        return tuple(warnings)


def _clips(files: Iterable[File]) -> dict[str, list[File]]:
    """Files of each clip: a video file is one, the images of a folder are one."""
    clips: dict[str, list[File]] = {}
    for file in files:
        clips.setdefault(file.path if is_video(file.path) else file.folder, []).append(file)
    return clips


@hookimpl
def anaus_datasets() -> list[type[Butterfly]]:
    """Butterfly."""
    return [Butterfly]
