"""Videos: number and rate of their frames, and their decoding to 8-bit gray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from anaus_bench.datasets.facts import facts
from anaus_bench.datasets.images import MAX_PIXELS, aspect_remark, count_pages, read_gray
from anaus_bench.datasets.listing import File, refusal
from anaus_bench.datasets.opening import opened, short
from anaus_bench.errors import DataError, EndOfClip, UnreadableFile
from anaus_bench.interfaces import Dataset

if TYPE_CHECKING:
    import av

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mpeg", ".mpg", ".gif", ".mkv")
STACK_SUFFIXES = (".tif", ".tiff")
MAX_FRAMES = 2**17  # of a clip
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,m4v,h264,hevc,gif,asf,ogg,flv"
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<?xml")


@dataclass(frozen=True)
class VideoHeader:
    """What a video file holds.

    Attributes:
        frames: Pictures that it shows: those outside of an edit list are not.
        rate: Frames a second; 0 if it does not say.
        promised: Number of frames that its header promises; 0 if it does not say.
        aspect: Width of a pixel over its height.
    """

    frames: int
    rate: float
    promised: int = 0
    aspect: float = 1.0

    def remarks(self, path: str) -> list[str]:
        """What a person should know of this clip."""
        said = [aspect_remark(path, self.aspect)]
        if self.promised not in (0, self.frames):
            said.append(f"{path!r} holds {self.frames} frames, its header promises {self.promised}")
        return [remark for remark in said if remark]


def video_header(path: Path) -> VideoHeader:
    """Number and rate of the frames of a video file; its packets are counted, nothing is decoded.

    Raises:
        UnreadableFile: Not a video, damaged, or without frames.
    """
    with _Decoder(path) as decoder:
        promised, rate, aspect = decoder.promised, decoder.rate, decoder.aspect
        header = VideoHeader(decoder.packets(), rate, promised, aspect)
    if not header.frames:
        raise UnreadableFile(f"{str(path)!r} holds no frame; expected a video")
    return header


def count_frames(path: Path) -> int:
    """Number of frames of a video file, or of pages of a TIFF.

    Raises:
        UnreadableFile: As `video_header`, or not an image.
    """
    return count_pages(path) if path.name.lower().endswith(STACK_SUFFIXES) else video_header(path).frames


@dataclass(frozen=True)
class Survey:
    """The clips of a data set: `headers` of those that can be read, why the others cannot, and what is odd."""

    headers: Mapping[str, VideoHeader]
    unreadable: Mapping[str, str]
    warnings: tuple[str, ...]


def survey(dataset: Dataset[Any], root: Path, files: Iterable[File]) -> Survey:
    """Opens all clips (videos, and TIFF files of several pages) among `files`; a second look at a clip costs nothing.

    Raises:
        DataError: Some cannot be read, unless the data set `skips_unreadable`; all of them are named.
    """
    paths = [file.path for file in files if is_video(file.path) or file.path.lower().endswith(STACK_SUFFIXES)]
    headers: dict[str, VideoHeader] = {}
    failed: dict[str, DataError] = {}
    for path, fact in zip(paths, facts(root, paths, "clip", _clip_fact), strict=True):
        if isinstance(fact, DataError):
            failed[path] = fact
        else:
            frames, rate, promised, aspect = cast("list[float]", fact)
            headers[path] = VideoHeader(int(frames), rate, int(promised), aspect)
    if failed and not dataset.skips_unreadable:
        raise refusal(failed, f"{dataset.name} in {str(root)!r}: ")
    remarks = [remark for path, header in headers.items() for remark in header.remarks(path)]
    return Survey(
        headers,
        {path: str(error) for path, error in failed.items()},
        tuple(f"{dataset.name}: {remark}" for remark in remarks),
    )


def is_video(path: str) -> bool:
    """Whether a file is decoded as a video, by its suffix."""
    return path.lower().endswith(VIDEO_SUFFIXES)


class VideoReader:
    """Reads single frames of video files and pages of TIFF files; in order, each frame is decoded once.

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
            UnreadableFile: Not a video, or damaged.
            EndOfClip: It has fewer frames.
        """
        if not is_video(path.name):
            return read_gray(path, number)
        if path != self._path or number < self._next:
            self._open(path)
        for frame in self._frames:
            self._next += 1
            if self._next > number:
                return frame
        found = self._next
        self.close()
        raise EndOfClip(
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
    """An open video file whose errors are `UnreadableFile`.

    It is handed to the decoder as a stream, so that its name is no address, and no container may name another file.
    """

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        with ExitStack() as stack:
            file = stack.enter_context(opened(path))
            if file.peek(16).lstrip().startswith(PLAYLISTS):
                raise UnreadableFile(f"{str(path)!r} is a playlist, which names other files; expected the video itself")
            options = {"protocol_whitelist": "none", "format_whitelist": VIDEO_FORMATS}
            try:
                container = av.open(file, "r", options=options)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise UnreadableFile(
                    f"{str(path)!r} cannot be opened as a video: {_said(error)}; expected "
                    f"{', '.join(VIDEO_SUFFIXES)}: copy or download it again"
                ) from error
            stack.callback(container.close)
            if not container.streams.video:
                raise UnreadableFile(f"{str(path)!r} has no video stream; expected a video")
            self._container, self._stream = container, container.streams.video[0]
            self._close = stack.pop_all().close

    @property
    def promised(self) -> int:
        """Number of frames according to the container; 0 where it does not say."""
        return int(self._stream.frames)

    @property
    def rate(self) -> float:
        """Frames a second according to the container; 0 where it does not say."""
        return float(self._stream.average_rate or 0)

    @property
    def aspect(self) -> float:
        """Width of a pixel over its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    def packets(self) -> int:
        """Number of packets with content that are shown, from where the file stands."""
        import av

        count = 0
        try:
            for packet in self._container.demux(self._stream):
                count += packet.size > 0 and not packet.is_discard
                if count > MAX_FRAMES:
                    raise UnreadableFile(f"{str(self._path)!r} has more than {MAX_FRAMES} frames; cut it")
        except (av.error.FFmpegError, ValueError) as error:
            raise self._damaged(error) from error
        return count

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, (H, W) uint8, turned as the track says."""
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
        return UnreadableFile(f"{str(self._path)!r} cannot be decoded: {_said(error)}; copy or download it again")

    def close(self) -> None:
        self._close()

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _said(error: Exception) -> str:
    """What the decoder says, without the number and the name of the stream that it was given."""
    return short(getattr(error, "strerror", None) or error)


def _clip_fact(path: Path) -> list[float]:
    if not is_video(path.name):
        return [count_pages(path), 0, 0, 1]
    header = video_header(path)
    return [header.frames, header.rate, header.promised, header.aspect]


def _gray(frame: av.VideoFrame) -> NDArray[np.uint8]:
    gray = np.asarray(frame.to_ndarray(format="gray"), dtype=np.uint8)
    return np.ascontiguousarray(np.rot90(gray, round(frame.rotation / 90)))


def write_video(path: Path, images: NDArray[np.uint8], rate: int) -> None:
    """Writes gray frames (T, H, W) as a video; the suffix chooses the container, the bytes depend on nothing else.

    Motion JPEG in .avi and .mov, MPEG-4 in .mp4, a palette in .gif.
    """
    import av

    codec, pixels = {".gif": ("gif", "gray"), ".mp4": ("mpeg4", "yuv420p")}.get(path.suffix, ("mjpeg", "yuvj420p"))
    form = {".mkv": "matroska"}.get(path.suffix, path.suffix.removeprefix("."))
    with path.open("wb") as file, av.open(file, "w", form, options={"fflags": "+bitexact"}) as container:
        stream: av.VideoStream = container.add_stream(codec, rate=rate)  # type: ignore[assignment]
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], pixels
        stream.codec_context.options = {"flags": "+bitexact+qscale", "global_quality": str(2 * 118), "threads": "1"}
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="gray").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
