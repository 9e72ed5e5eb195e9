"""Any folder of images and videos as an unlabelled corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from anaus_bench.datasets.images import read_picture
from anaus_bench.datasets.layout import IMAGE_SUFFIXES, check_root, fingerprint, is_phantom
from anaus_bench.datasets.listing import File, list_files
from anaus_bench.datasets.videos import VIDEO_SUFFIXES, Survey, VideoReader, is_video, survey
from anaus_bench.errors import LayoutError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.settings.base import Settings


class ImagesSettings(Settings):
    """Which frames of a clip are used; the default is all of them."""

    every: int = Field(1, description="Take every n-th frame of a clip, from the first; 1 = all. Unit: frames.", ge=1)
    max_frames: int | None = Field(
        None, description="At most this many frames of a clip, after `every`; none = no limit. Unit: frames.", ge=1
    )


class Images(Dataset[ImagesSettings]):
    """Images in a sub-folder are the frames of one clip, in numeric order; images in the root stand alone.

    A clip (video file, TIFF of several pages, or sub-folder) is one group.
    """

    name = "images"
    settings_class = ImagesSettings
    title = "Folder of images and videos"
    licence = "the files' own"
    how_to_get = (
        "Put images (png, jpg, bmp, tif) or videos (mp4, avi, mov, mpeg, mkv, gif) into one folder, "
        "with a sub-folder for each clip that is stored as single frames."
    )

    def __init__(self, settings: ImagesSettings) -> None:
        super().__init__(settings)
        self._videos = VideoReader()

    def scan(self, root: Path) -> Index:
        """All frames in natural order; of a video only the container is read, of a TIFF only the pages are counted.

        Raises:
            DatasetNotFound, LayoutError: Root missing or empty, or no image or video in it.
            UnreadableFile: A video or a TIFF cannot be opened.
        """
        check_root(self, root)
        files = list_files(self, root, root, IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        if not files:
            raise LayoutError(f"{self.name}: no image or video under {str(root)!r}; {self.how_to_get}")
        clips = survey(self, root, files)
        samples = tuple(self._samples(files, clips))
        return Index(root, samples, fingerprint(root, files), is_phantom(root), clips.warnings, clips.unreadable)

    def read(self, index: Index, sample: Sample) -> Picture:
        """The image or frame; no mask.

        Raises:
            UnreadableFile: The file cannot be decoded, or a video ends before the frame.
        """
        if sample.video_id == sample.path and sample.frame_index is not None:
            return Picture(self._videos.frame(index.root / sample.path, sample.frame_index))
        return read_picture(index.root, sample.path, ())

    def _samples(self, files: Iterable[File], clips: Survey) -> Iterator[Sample]:
        position: dict[str, int] = {}  # of the next frame in each folder
        for file in files:
            if file.path in clips.unreadable:
                continue
            header = clips.headers.get(file.path)
            if header is not None and (is_video(file.path) or header.frames > 1):
                for frame in self._chosen(header.frames):
                    yield Sample(f"{file.path}#{frame}", file.path, file.path, video_id=file.path, frame_index=frame)
            elif not file.folder:
                yield Sample(file.path, file.path, file.path)
            else:
                frame = position.get(file.folder, 0)
                position[file.folder] = frame + 1
                if frame in self._chosen(frame + 1):
                    yield Sample(file.path, file.folder, file.path, video_id=file.folder, frame_index=frame)

    def _chosen(self, count: int) -> range:
        """Numbers of the frames used of a clip of `count`."""
        chosen = range(0, count, self.settings.every)
        return chosen if self.settings.max_frames is None else chosen[: self.settings.max_frames]


@hookimpl
def anaus_datasets() -> list[type[Images]]:
    """The folder corpus."""
    return [Images]
