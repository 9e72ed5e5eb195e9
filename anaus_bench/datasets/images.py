"""Decoding of still images, masks and videos to 8-bit gray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.layout import naming
from anaus_bench.errors import EmptyMask, SizeMismatch, UnreadableFile
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image

if TYPE_CHECKING:
    import av

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mpeg", ".mpg", ".gif", ".mkv")
MAX_PIXELS = 2**26  # far above any ultrasound image; a small file can claim gigabytes
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def read_gray(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of an image file (ITU-R 601 luma for colours; transparency is ignored).

    Raises:
        UnreadableFile: Missing, damaged, truncated, larger than `MAX_PIXELS`, or of more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableFile(
                    f"{str(path)!r} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read"
                )
            if image.mode not in EIGHT_BIT:
                raise UnreadableFile(
                    f"{str(path)!r} has pixels of mode {image.mode!r}; expected 8 bits: "
                    "convert it with the grey window you want"
                )
            return np.array(image.convert("L"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableFile(f"{str(path)!r} cannot be decoded: {error}; copy or download it again") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header.

    Raises:
        UnreadableFile: Not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableFile(f"{str(path)!r} cannot be decoded: {error}; copy or download it again") from error


def read_picture(root: Path, path: str, mask_paths: Sequence[str]) -> Picture:
    """An image and the union of its masks (1 where a mask exceeds 127, else 0); no mask without `mask_paths`.

    Raises:
        UnreadableFile: A file cannot be decoded.
        SizeMismatch: A mask has another size than the image.
    """
    image = read_gray(root / path)
    if not mask_paths:
        return Picture(image)
    union = np.zeros(image.shape, dtype=bool)
    for mask_path in mask_paths:
        mask = read_gray(root / mask_path)
        if mask.shape != image.shape:
            raise SizeMismatch(
                f"{str(root / mask_path)!r} has {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"its image {path!r} {image.shape[1]} x {image.shape[0]}; both must be of one size"
            )
        union |= mask > 127
    return Picture(image, union.astype(np.uint8))


def read_marked(dataset: Dataset[Any], index: Index, sample: Sample) -> Picture:
    """As `read_picture`, of a data set in which every image has something marked.

    Raises:
        UnreadableFile, SizeMismatch: As `read_picture`.
        EmptyMask: The mask is all zero.
    """
    with naming(dataset, index.root):
        picture = read_picture(index.root, sample.path, sample.mask_paths)
        if picture.mask is not None and not picture.mask.any():
            raise EmptyMask(
                f"the mask {sample.mask_paths[0]!r} is all zero; every image of this data set has a "
                f"{dataset.structures[0]}: copy it again"
            )
    return picture


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says of itself: `frames` (their number) and `rate` (frames a second, 0 if it does not say)."""

    frames: int
    rate: float


def video_header(path: Path) -> VideoHeader:
    """Number and rate of the frames of a video file; nothing is decoded.

    Where the container does not hold the number (mpeg), its packets are counted: one a frame.

    Raises:
        UnreadableFile: Not a video, damaged, or without frames.
    """
    with _Decoder(path) as decoder:
        header = VideoHeader(decoder.promised or decoder.packets(), decoder.rate)
    if not header.frames:
        raise UnreadableFile(f"{str(path)!r} holds no frame; expected a video")
    return header


def count_frames(path: Path) -> int:
    """Number of frames of a video file.

    Raises:
        UnreadableFile: As `video_header`.
    """
    return video_header(path).frames


def is_video(path: str) -> bool:
    """Whether a file is decoded as a video, by its suffix."""
    return path.lower().endswith(VIDEO_SUFFIXES)


class VideoReader:
    """Reads single frames of video files; in order, each frame is decoded once.

    The decoder of the last file stays open at the frame that comes next.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._decoder: _Decoder | None = None
        self._frames: Iterator[NDArray[np.uint8]] = iter(())
        self._next = 0

    def frame(self, path: Path, number: int) -> NDArray[np.uint8]:
        """(H, W) uint8 gray of frame `number`, from 0.

        Raises:
            UnreadableFile: Not a video, damaged, or with fewer frames.
        """
        if path != self._path or number < self._next:
            self._open(path)
        for frame in self._frames:
            self._next += 1
            if self._next > number:
                return frame
        found = self._next
        self.close()
        raise UnreadableFile(
            f"{str(path)!r} ends after {found} frames, frame {number} was expected; copy or download it again"
        )

    def close(self) -> None:
        """Closes the open file, if any."""
        if self._decoder is not None:
            self._decoder.close()
        self._path, self._decoder, self._frames, self._next = None, None, iter(()), 0

    def _open(self, path: Path) -> None:
        self.close()
        self._decoder = _Decoder(path)
        self._path, self._frames = path, self._decoder.frames()


class _Decoder:
    """An open video file whose errors are `UnreadableFile`."""

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        try:
            self._container = av.open(str(path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UnreadableFile(
                f"{str(path)!r} cannot be opened as a video: {error}; copy or download it again"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise UnreadableFile(f"{str(path)!r} has no video stream; expected a video")
        self._stream = self._container.streams.video[0]

    @property
    def promised(self) -> int:
        """Number of frames according to the container; 0 where it does not say."""
        return int(self._stream.frames)

    @property
    def rate(self) -> float:
        """Frames a second according to the container; 0 where it does not say."""
        return float(self._stream.average_rate or 0)

    def packets(self) -> int:
        """Number of packets with content, from where the file stands."""
        import av

        try:
            return sum(1 for packet in self._container.demux(self._stream) if packet.size)
        except (av.error.FFmpegError, ValueError) as error:
            raise self._damaged(error) from error

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, (H, W) uint8."""
        import av

        try:
            for frame in self._container.decode(self._stream):
                if frame.width * frame.height > MAX_PIXELS:
                    raise UnreadableFile(
                        f"{str(self._path)!r} has frames of {frame.width} x {frame.height} pixels; "
                        f"at most {MAX_PIXELS} are read"
                    )
                yield _gray(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UnreadableFile:
        return UnreadableFile(f"{str(self._path)!r} cannot be decoded: {error}; copy or download it again")

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _gray(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frame.to_ndarray(format="gray"), dtype=np.uint8)


def write_video(path: Path, images: NDArray[np.uint8], rate: int) -> None:
    """Writes gray frames (T, H, W) as a video; the suffix chooses the container, the bytes depend on nothing else.

    Motion JPEG in .avi and .mov, MPEG-4 in .mp4, a palette in .gif.
    """
    import av

    codec, pixels = {".gif": ("gif", "gray"), ".mp4": ("mpeg4", "yuv420p")}.get(path.suffix, ("mjpeg", "yuvj420p"))
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream: av.VideoStream = container.add_stream(codec, rate=rate)  # type: ignore[assignment]
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], pixels
        stream.codec_context.options = {"flags": "+bitexact+qscale", "global_quality": str(2 * 118), "threads": "1"}
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="gray").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
