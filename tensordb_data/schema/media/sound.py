"""Reading encoded sound with libsndfile: what a header says, and a part of the frames."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError, MissingExtraError
from tensordb_data.schema.field import Buffer
from tensordb_data.schema.media.files import limit

MAX_VALUES = 500_000_000
"""Numbers in a sound that is decoded, unless `TENSORDB_MAX_AUDIO` says otherwise: 2 GB as float32."""
_VARIABLE = "TENSORDB_MAX_AUDIO"
_BLOCK = 1 << 20  # frames that are read at once, since a header can claim any number
_UNKNOWN = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # sizes of a WAV that was written to a pipe
_EXACT = ("wav", "flac", "aiff", "au", "caf")
"""Formats in which libsndfile goes to a frame exactly. After a seek in MP3 and Vorbis, the first frames are others."""

Sound = npt.NDArray[np.float32]


class SoundInfo(NamedTuple):
    """What the header of a sound says."""

    rate: int
    """Frames a second."""
    channels: int
    frames: int


def sound_format(data: Buffer) -> str | None:
    """The format of an encoded sound, by its first bytes; None if it is none that can be read."""
    head = bytes(data[:64])
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"OggS"):
        return None if b"theora" in head else "ogg"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head.startswith(b".snd"):
        return "au"
    if head.startswith(b"caff"):
        return "caf"
    if head.startswith(b"ID3") or _is_mpeg_frame(head):
        return "mp3"
    return None


def _is_mpeg_frame(head: bytes) -> bool:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer, bits, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bits not in (0, 15) and rate != 3


@contextlib.contextmanager
def opened(data: Buffer) -> Iterator[Any]:
    """A sound, opened by soundfile.

    Raises:
        CorruptBlobError: It is damaged.
        MissingExtraError: soundfile is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: without libsndfile
        raise MissingExtraError("sound is read with soundfile: pip install 'tensordb-data[audio]'") from None
    if sound_format(data) is None:
        raise CorruptBlobError(f"expected a sound, found {len(data)} bytes beginning {bytes(data[:8])!r}")
    try:
        with _forward(soundfile)(_Bytes(data)) as sound:
            yield sound
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError, OverflowError) as error:
        raise CorruptBlobError(f"expected a sound, found damaged bytes: {error}") from None


class _Bytes(io.BytesIO):
    """What libsndfile reads. Damaged files lead it to places before the start, and an error would only be printed."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


@functools.cache
def _forward(soundfile: Any) -> Any:
    """A `SoundFile` that only reads on. After each read, that of soundfile seeks to where it is, which MP3 cannot."""

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Forward


def info_of(sound: Any) -> SoundInfo:
    """What the header of an open sound says."""
    return SoundInfo(int(sound.samplerate), int(sound.channels), int(sound.frames))


def sound_info(data: Buffer) -> SoundInfo:
    """What the header of an encoded sound says.

    Raises:
        CorruptBlobError: It is damaged.
        MissingExtraError: soundfile is not installed.
    """
    with opened(data) as sound:
        return info_of(sound)


def read_sound(data: Buffer) -> tuple[Sound, int]:
    """A whole sound, float32 [frames, channels] from -1 to 1, and its rate.

    Raises:
        CorruptBlobError: It is damaged, cut off, or too large.
        MissingExtraError: soundfile is not installed.
    """
    _check_whole(data)
    with opened(data) as sound:
        info = info_of(sound)
        values = _read(sound, info.channels, max(1, limit(_VARIABLE, MAX_VALUES) // max(1, info.channels)) + 1)
        _check_size(len(values) * info.channels)
        if len(values) < info.frames < 2**62:
            raise CorruptBlobError(f"expected {info.frames} frames, as the header says, found {len(values)}: truncated")
        return values, info.rate


def read_part(data: Buffer, sound: Any, start: int, frames: int) -> Sound:
    """Some frames of an open sound, float32 [frames, channels], exactly those that are there in the whole sound.

    Raises:
        CorruptBlobError: There are not so many frames.
    """
    _check_size(frames * sound.channels)
    if sound_format(data) in _EXACT:
        sound.seek(start)
    else:
        skip = start
        while skip:
            read = len(sound.read(min(skip, _BLOCK), dtype="float32", always_2d=True))
            if not read:
                break
            skip -= read
    values = _read(sound, sound.channels, frames)
    if len(values) < frames:
        raise CorruptBlobError(
            f"expected {start + frames} frames or more, as the header says, found {start + len(values)}: truncated"
        )
    return values


def _read(sound: Any, channels: int, most: int) -> Sound:
    parts: list[Sound] = []
    left = most
    while left > 0:
        part = sound.read(min(left, _BLOCK), dtype="float32", always_2d=True)
        parts.append(part)
        left -= len(part)
        if len(part) < min(left + len(part), _BLOCK):
            break
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, channels), np.float32)


def _check_size(values: int) -> None:
    most = limit(_VARIABLE, MAX_VALUES)
    if values > most:
        raise CorruptBlobError(
            f"expected a sound of at most {most:,} numbers, found one of {values:,}: if it is meant, set the"
            f" environment variable {_VARIABLE} to more"
        )


def _check_whole(data: Buffer) -> None:
    """Refuse a WAV that was cut off: libsndfile takes what is left for all of it."""
    if bytes(data[:4]) != b"RIFF":
        return
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if bytes(data[at : at + 4]) == b"data":
            if size not in _UNKNOWN and at + 8 + size > len(data):
                raise CorruptBlobError(f"expected {size} bytes of sound, found {len(data) - at - 8}: truncated")
            return
        at += 8 + size + (size & 1)
