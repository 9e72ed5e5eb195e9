"""Any folder of images and videos as an unlabelled corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from anaus_bench.datasets.images import VIDEO_SUFFIXES, VideoReader, count_frames, read_gray
from anaus_bench.datasets.layout import IMAGE_SUFFIXES, File, check_root, fingerprint, is_phantom, list_files
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

    A clip (video file or sub-folder) is one group.
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
        """All frames in natural order; of a video only the container is read.

        Raises:
            DatasetNotFound, LayoutError: Root missing or empty, or no image or video in it.
            UnreadableFile: A video cannot be opened.
        """
        check_root(self, root)
        files = list_files(self, root, root, IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        if not files:
            raise LayoutError(f"{self.name}: no image or video under {str(root)!r}; {self.how_to_get}")
        samples = tuple(self._samples(root, files))
        return Index(root, samples, fingerprint(files), phantom=is_phantom(root))

    def read(self, index: Index, sample: Sample) -> Picture:
        """The image or frame; no mask.

        Raises:
            UnreadableFile: The file cannot be decoded, or a video ends before the frame.
        """
        path = index.root / sample.path
        if is_video(sample.path) and sample.frame_index is not None:
            return Picture(self._videos.frame(path, sample.frame_index))
        return Picture(read_gray(path))

    def _samples(self, root: Path, files: Iterable[File]) -> Iterator[Sample]:
        position: dict[str, int] = {}  # of the next frame in each folder
        for file in files:
            if is_video(file.path):
                for frame in self._chosen(count_frames(root / file.path)):
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


def is_video(path: str) -> bool:
    """Whether a file is decoded as a video, by its suffix."""
    return path.lower().endswith(VIDEO_SUFFIXES)


@hookimpl
def anaus_datasets() -> list[type[Images]]:
    """The folder corpus."""
    return [Images]
