"""Decoding of still images, masks and videos to 8-bit gray."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from anaus_bench.data.facts import facts
from anaus_bench.data.layout import File, naming
from anaus_bench.data.masks import BadLevels, border_remark, two_valued
from anaus_bench.data.opening import check_cost, damaged, opened, short
from anaus_bench.errors import BadMaskValues, DataError, EmptyMask, EndOfClip, SizeMismatch, UnreadableFile
from anaus_bench.interfaces import Dataset, Index, Picture, Sample
from anaus_bench.lazy import Image

if TYPE_CHECKING:
    import av

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mpeg", ".mpg", ".gif", ".mkv")
STACK_SUFFIXES = (".tif", ".tiff")
MAX_PIXELS = 2**26  # far above any ultrasound image; a small file can claim gigabytes
MAX_FRAMES = 2**17  # of a clip
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# None of these runs a program or opens another file, as other formats that Pillow knows may.
STILL_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "JPEG2000", "PPM")
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,m4v,h264,hevc,gif,asf,ogg,flv"
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<?xml")
ORIENTATION = 0x0112  # EXIF and TIFF
SUBFILE = 0x00FE  # TIFF: bit 0 marks a reduced copy of another page
# What Pillow raises on damaged files depends on the format.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Still:
    """A decoded picture, turned as its EXIF orientation says.

    Attributes:
        image: Its pixels.
        turned: The EXIF orientation that was applied; 1 = as stored.
        aspect: Width of a pixel over its height.
        lossy: Whether its values are those of a lossy compression.
    """

    image: Image.Image
    turned: int
    aspect: float
    lossy: bool


def read_gray(path: Path, page: int | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of an image file (ITU-R 601 luma for colours; transparency is ignored).

    Args:
        path: The file.
        page: Which page of a TIFF, from 0; None where there must be one alone.

    Raises:
        UnreadableFile: Missing, damaged, truncated, larger than `MAX_PIXELS`, of more than 8 bits, or of several pages.
    """
    return _gray_of(read_still(path, page).image, path)


def read_still(path: Path, page: int | None = None) -> Still:
    """A picture, decoded and turned.

    Raises:
        UnreadableFile: As `read_gray`, but for the number of bits.
    """
    from PIL import ImageOps

    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                _check_picture(path, image)
                pages = _pages(image)
                if page is None and len(pages) > 1:
                    raise UnreadableFile(
                        f"{str(path)!r} has {len(pages)} pages (frames); expected one picture: save each as a file"
                    )
                if page is not None and page >= len(pages):
                    raise UnreadableFile(f"{str(path)!r} has {len(pages)} pages, page {page} was expected")
                if pages[page or 0]:
                    image.seek(pages[page or 0])
                    _check_picture(path, image)
                lossy = image.format in ("JPEG", "MPO", "WEBP", "JPEG2000")
                turned = image.getexif().get(ORIENTATION, 1)
                across, down = _density(image)
                image.load()
                shown = image if turned == 1 else ImageOps.exif_transpose(image)
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error
    return Still(shown, turned if turned in range(1, 9) else 1, down / across, lossy)


def count_pages(path: Path) -> int:
    """Number of pages of a TIFF, without reduced copies of others.

    Raises:
        UnreadableFile: Not an image.
    """
    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                return len(_pages(image))
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as stored, from its header.

    Raises:
        UnreadableFile: Not an image.
    """
    with opened(path) as file:
        try:
            with Image.open(file, formats=STILL_FORMATS) as image:
                return image.size
        except DAMAGED as error:
            raise _undecoded(path, error) from error
        except Image.DecompressionBombError as error:
            raise UnreadableFile(f"{str(path)!r} cannot be decoded: {short(error)}") from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """(H, W) bool: what a mask file marks, by the rule of `two_valued`.

    Raises:
        UnreadableFile: As `read_still`.
        BadMaskValues: It holds anything but a background and one value for what is marked.
    """
    return _marked(read_still(path), path)


def read_picture(root: Path, path: str, mask_paths: Sequence[str]) -> Picture:
    """An image and the union of its masks (1 where any marks something, else 0); no mask without `mask_paths`.

    Raises:
        UnreadableFile: A file cannot be decoded.
        BadMaskValues: A mask holds more than two values.
        SizeMismatch: A mask has another size than the image, or another EXIF orientation.
    """
    still = read_still(root / path)
    image = _gray_of(still.image, root / path)
    remarks = [aspect_remark(path, still.aspect)]
    if not mask_paths:
        return Picture(image, remarks=tuple(filter(None, remarks)))
    union = np.zeros(image.shape, dtype=bool)
    for mask_path in mask_paths:
        mask_still = read_still(root / mask_path)
        if mask_still.turned != still.turned:
            raise SizeMismatch(
                f"{str(root / mask_path)!r} has the EXIF orientation {mask_still.turned}, its image {path!r} "
                f"{still.turned}; both must be turned alike: save both as they are shown, without the EXIF tag"
            )
        if mask_still.image.size != still.image.size:
            raise SizeMismatch(
                f"{str(root / mask_path)!r} has {mask_still.image.width} x {mask_still.image.height} pixels, "
                f"its image {path!r} {image.shape[1]} x {image.shape[0]}; both must be of one size"
            )
        mask = _marked(mask_still, root / mask_path)
        if len(mask_paths) > 1 and not mask.any():
            remarks.append(f"{mask_path!r}, one of {len(mask_paths)} masks of {path!r}, marks nothing")
        remarks.append(border_remark(mask_path, mask))
        union |= mask
    return Picture(image, union.astype(np.uint8), tuple(filter(None, remarks)))


def aspect_remark(path: str, aspect: float) -> str:
    """What to say of pixels that are not square; empty where they are."""
    if abs(aspect - 1) < 0.01:
        return ""
    return f"{path!r} says that its pixels are {aspect:.3g} times as wide as high; they are taken as square"


def _check_picture(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableFile(f"{str(path)!r} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read")
    check_cost(path, image.width * image.height * 8, f"{image.width} x {image.height} pixels")
    # Pillow keeps the upper byte alone of colours of 16 bits.
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not image.mode.startswith("I"):
        raise UnreadableFile(
            f"{str(path)!r} has 16 bits a channel; expected 8 bits: convert it with the grey window you want"
        )


def _gray_of(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode not in EIGHT_BIT:
        bits = "16 bits, " if image.mode.startswith("I;16") else ""
        raise UnreadableFile(
            f"{str(path)!r} has pixels of {bits}mode {image.mode!r}; expected 8 bits: "
            "convert it with the grey window you want"
        )
    return np.array(image.convert("L"), dtype=np.uint8)


def _marked(still: Still, path: Path) -> NDArray[np.bool_]:
    try:
        return two_valued(still.image, still.lossy)
    except BadLevels as error:
        raise BadMaskValues(f"the mask {str(path)!r} {error}") from error


def _pages(image: Image.Image) -> list[int]:
    """Numbers of the pages that are pictures of their own."""
    count = getattr(image, "n_frames", 1)
    if image.format == "MPO" or count == 1:  # the further pictures of an MPO are previews and other views of the first
        return [0]
    if image.format != "TIFF":
        return list(range(count))
    kept = []
    for page in range(count):
        image.seek(page)
        if not cast("Any", image).tag_v2.get(SUBFILE, 0) & 1:
            kept.append(page)
    image.seek(0)
    return kept or [0]


def _density(image: Image.Image) -> tuple[float, float]:
    """Pixels a length across and down; (1, 1) where the file does not say."""
    for name in ("aspect", "jfif_density", "dpi"):
        across, down = image.info.get(name) or (0, 0)
        if across > 0 and down > 0:
            return float(across), float(down)
    return 1.0, 1.0


def _undecoded(path: Path, error: Exception) -> UnreadableFile:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return UnreadableFile(
            f"{str(path)!r} cannot be decoded: it is none of {', '.join(STILL_FORMATS)}; copy or download it again"
        )
    return damaged(path, error)


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
                f"the mask {sample.mask_paths[0]!r} is all zero (or of one gray); every image of this data set has a "
                f"{dataset.structures[0]}: copy it again"
            )
    return picture


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


def refusal(failed: Mapping[str, DataError], where: str = "", listed: int = 20) -> DataError:
    """One error for all files that cannot be used, each named once; `where` begins the message."""
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return type(first)(f"{where}{first}")
    names = [repr(path) for path in failed]
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return type(first)(
        f"{where}{len(failed)} files cannot be used: {', '.join(names[:listed])}{more}; the first: {first}; `data "
        "verify` says why of each, and --set corpus.unreadable=skip leaves unreadable ones out of a corpus"
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
