"""Reading encoded video with PyAV: which frames there are, and some of them, exactly."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import xxhash

from tensordb_data.errors import CorruptBlobError, MissingExtraError
from tensordb_data.schema.field import Buffer
from tensordb_data.schema.media.containers import check_whole, video_format
from tensordb_data.schema.media.files import limit

MAX_PIXELS = 1_000_000_000
"""Pixels of all frames that are decoded at once, unless `TENSORDB_MAX_VIDEO` says otherwise: 3 GB."""
_VARIABLE = "TENSORDB_MAX_VIDEO"
_ONE_TO_ONE = ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "prores", "ffv1", "mpeg2video", "h263", "rawvideo")
"""Codecs of which each packet becomes a frame, where the container does not say that it is dropped."""
_TIMED = ("mov", "matroska", "mpegts")
"""Containers that know the time of each packet, also after a seek. Others are decoded from their start on."""

_SKIPPED = 16
"""Frames that are decoded in vain before the video is opened at a later key frame."""

Frames = npt.NDArray[np.uint8]
Table = npt.NDArray[np.int64]


class Times(NamedTuple):
    """When the frames of a video are shown, in order."""

    pts: npt.NDArray[np.int64]
    """Of each frame, in units of the container."""
    key: npt.NDArray[np.bool_]
    """Whether decoding can begin there."""
    unit: Fraction
    """Seconds of a unit."""

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """When each frame is shown, from the first one on."""
        found: npt.NDArray[np.float64] = (self.pts - self.pts[0]) * float(self.unit)
        return found

    @property
    def duration(self) -> float:
        """Seconds until the end of the last frame, which is taken to be shown as long as most are."""
        if len(self.pts) < 2:
            return 0.0
        return float(self.pts[-1] - self.pts[0] + np.median(np.diff(self.pts))) * float(self.unit)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError("a video names another file, which is not opened")


@contextlib.contextmanager
def opened(data: Buffer) -> Iterator[tuple[Any, Any]]:
    """The container of a video, and its first stream of pictures. What a file names besides itself is not opened.

    Raises:
        CorruptBlobError: It is damaged.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("video is read with PyAV: pip install 'tensordb-data[video]'") from None
    name = video_format(data)
    if name is None:
        raise CorruptBlobError(f"expected a video, found {len(data)} bytes beginning {bytes(data[:8])!r}")
    check_whole(data, name)
    try:
        with av.open(io.BytesIO(data), format=name, io_open=_refuse, metadata_errors="replace") as container:
            if not container.streams.video:
                raise CorruptBlobError("expected a video, found a file without pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise CorruptBlobError("expected a video, found one of a codec that FFmpeg does not know")
            stream.codec_context.thread_count = 1  # a stream has threads of its own
            stream.codec_context.options = {"err_detect": "explode"}
            _check_pixels(1, stream.codec_context.width * stream.codec_context.height)
            yield container, stream
    except (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"expected a video, found damaged bytes: {error}") from None


def frame_times(data: Buffer) -> Times:
    """When the frames of a video are shown. Packets are looked at, and decoded only where they do not tell.

    Raises:
        CorruptBlobError: It is damaged, or has no frames.
        MissingExtraError: PyAV is not installed.
    """
    timed = video_format(data) in _TIMED
    with opened(data) as (container, stream):
        unit, codec = Fraction(stream.time_base or 0), stream.codec_context.name
        rate = Fraction(stream.average_rate or 0)
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    exact = timed and codec in _ONE_TO_ONE and all(pts is not None for pts, _ in packets)
    if not exact or len({pts for pts, _ in packets}) < len(packets):
        with opened(data) as (container, stream):
            packets = [(frame.pts, frame.key_frame) for frame in _decoded(container, stream)]
        if not timed:  # they are in order, at one rate
            packets = [(number, key) for number, (_, key) in enumerate(packets)]
            unit = 1 / rate if rate else Fraction(0)
    if not packets or unit <= 0:
        raise CorruptBlobError("expected a video, found one without frames or times")
    if any(pts is None for pts, _ in packets):
        raise CorruptBlobError("expected frames with times, found some without: write the video as MP4 or Matroska")
    found = dict(sorted(packets))
    return Times(np.array(list(found), np.int64), np.array(list(found.values()), np.bool_), unit)


def table_of(data: Buffer, times: Times) -> Table:
    """The times of the frames of a video as an array, int64 [frames + 2, 2], to be stored beside it.

    The first row says of which video it is, and the second how many seconds a unit is, as a fraction. The others have
    the time of a frame, and whether decoding can begin there.
    """
    unit = np.array([times.unit.as_integer_ratio()], np.int64)
    return np.concatenate([_mark(data), unit, np.stack([times.pts, times.key.astype(np.int64)], axis=1)])


def times_of(data: Buffer, table: Any) -> Times:
    """The times of the frames of a video, from its table if there is one and it is of this video.

    Raises:
        CorruptBlobError: see `frame_times`.
    """
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 2 or table.dtype != np.int64:
        return frame_times(data)
    if len(table) < 3 or (table[1] <= 0).any() or (np.diff(table[2:, 0]) <= 0).any():
        return frame_times(data)
    if (table[:1] != _mark(data)).any():
        return frame_times(data)
    return Times(table[2:, 0], table[2:, 1] != 0, Fraction(*table[1].tolist()))


def _mark(data: Buffer) -> Table:
    digest = xxhash.xxh3_64_intdigest(data) - 2**63  # as a number with a sign
    return np.array([[len(data), digest]], np.int64)


def read_all(data: Buffer) -> Frames:
    """All frames of a video, uint8 [frames, height, width, 3], upright.

    Raises:
        CorruptBlobError: It is damaged or too large, or its frames differ in size.
        MissingExtraError: PyAV is not installed.
    """
    with opened(data) as (container, stream):
        found: list[Frames] = []
        for frame in _decoded(container, stream):
            _check_pixels(len(found) + 1, frame.width * frame.height)
            found.append(_pixels(frame))
    if not found:
        raise CorruptBlobError("expected a video, found one without frames")
    return _stacked(dict(enumerate(found)), range(len(found)))


def frame_size(data: Buffer) -> tuple[int, int]:
    """Height and width of the first frame of a video, upright.

    Raises:
        CorruptBlobError: It is damaged, or has no frames.
        MissingExtraError: PyAV is not installed.
    """
    with opened(data) as (container, stream):
        for frame in _decoded(container, stream):
            return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)
    raise CorruptBlobError("expected a video, found one without frames")


def count_frames(data: Buffer) -> int:
    """How many frames a video has, by decoding all of them.

    Raises:
        CorruptBlobError: It is damaged.
        MissingExtraError: PyAV is not installed.
    """
    with opened(data) as (container, stream):
        return sum(1 for _ in _decoded(container, stream))


def read_frames(data: Buffer, times: Times, numbers: Sequence[int]) -> Frames:
    """Some frames of a video, uint8 [n, height, width, 3], upright.

    Args:
        data: The video.
        times: When its frames are shown.
        numbers: Those of the frames, in any order.

    Raises:
        CorruptBlobError: It is damaged, or does not have these frames, or they differ in size.
        MissingExtraError: PyAV is not installed.
    """
    wanted: list[int] = sorted(set(numbers))
    keys = np.flatnonzero(times.key)
    if video_format(data) not in _TIMED or not len(keys):
        return _stacked(_from(data, times, None, wanted), numbers)
    before = np.searchsorted(keys, wanted, side="right") - 1  # the key frame before each
    found: dict[int, Frames] = {}
    low = 0
    while low < len(wanted):
        # Decoding goes on from one to the next, unless a key frame lies so far ahead that a seek saves work.
        high = low + 1
        while high < len(wanted) and keys[max(0, before[high])] - wanted[high - 1] <= _SKIPPED:
            high += 1
        found |= _from_key(data, times, keys, int(before[low]), wanted[low:high])
        low = high
    return _stacked(found, numbers)


def _from_key(data: Buffer, times: Times, keys: Any, key: int, wanted: Sequence[int]) -> dict[int, Frames]:
    """Frames that are decoded from a key frame on; if one needs what is before it, from the one before, or all."""
    for start in (key, key - 1):
        if start < 0:
            break
        try:
            return _from(data, times, int(times.pts[keys[start]]), wanted)
        except CorruptBlobError:
            continue
    return _from(data, times, None, wanted)


def _from(data: Buffer, times: Times, start: int | None, wanted: Sequence[int]) -> dict[int, Frames]:
    """Frames that are decoded from a time on, or from the start.

    Raises:
        CorruptBlobError: It is damaged, or one of them does not come.
    """
    numbers = {int(times.pts[number]): number for number in wanted}
    last = max(numbers)
    found: dict[int, Frames] = {}
    timed = video_format(data) in _TIMED
    with opened(data) as (container, stream):
        if start is not None:
            container.seek(start, stream=stream)
        for count, frame in enumerate(_decoded(container, stream)):
            at = frame.pts if timed else count
            if at in numbers:
                _check_pixels(len(found) + 1, frame.width * frame.height)
                found[numbers[at]] = _pixels(frame)
            if at is not None and at >= last:
                break
    if missing := [number for number in wanted if number not in found]:
        raise CorruptBlobError(f"expected {len(times.pts)} frames, found none at number {missing[0]}")
    return found


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise CorruptBlobError(f"expected a whole frame at {frame.time} seconds, found a damaged one")
        yield frame


def _pixels(frame: Any) -> Frames:
    pixels: Frames = frame.to_ndarray(format="rgb24")
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _turns(frame: Any) -> int:
    """By how many right angles a frame is turned before it is shown, against the clock."""
    turns: int = round(frame.rotation / 90) % 4
    return turns


def _stacked(frames: Mapping[int, Frames], numbers: Sequence[int]) -> Frames:
    shapes = {frame.shape for frame in frames.values()}
    if len(shapes) > 1:
        raise CorruptBlobError(f"expected frames of one size, found {' and '.join(map(str, sorted(shapes)[:2]))}")
    _check_pixels(len(numbers), math.prod(next(iter(shapes))[:2]))
    return np.stack([frames[number] for number in numbers])


def _check_pixels(frames: int, pixels: int) -> None:
    most = limit(_VARIABLE, MAX_PIXELS)
    if frames * pixels > most:
        raise CorruptBlobError(
            f"expected at most {most:,} pixels in all frames, found {frames * pixels:,} or more: read parts by"
            f" decode= and Clip, or set the environment variable {_VARIABLE} to more"
        )
