"""Encoded sound."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tensordb_data.errors import CorruptBlobError, MissingExtraError, SchemaError
from tensordb_data.schema.field import BlobField, Buffer, Element, describe
from tensordb_data.schema.media.files import given_bytes
from tensordb_data.schema.media.sound import Sound, read_sound, sound_format

MAX_RATE = 10_000_000


@dataclasses.dataclass(frozen=True, repr=False)
class Audio(BlobField):
    """An encoded sound, given as its bytes or as a `pathlib.Path`: WAV, FLAC, MP3, Ogg (Vorbis, Opus), AIFF, AU, CAF.

    It is stored byte for byte, and read as an array float32 [frames, channels] from -1 to 1. Parts of it, and random
    ones, come by `decode={"sound": Window(seconds=2)}` of a stream. Decoding needs soundfile, the extra
    `tensordb-data[audio]`. A sound of more than 500 million numbers is not decoded, unless the environment variable
    `TENSORDB_MAX_AUDIO` says so.

    Args:
        rate: Frames a second, to which a sound of another rate is resampled when it is read; None for that of each.
        channels: 1 for the mean of all channels, or the number that all sounds have; None for those of each.
        optional: Whether samples may leave the field out.
    """

    rate: int | None = None
    channels: int | None = None

    kind: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        for name, most in (("rate", MAX_RATE), ("channels", 1024)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
                raise SchemaError(f"expected audio whose {name} is a whole number from 1 to {most}, found {value!r}")

    def to_doc(self) -> dict[str, Any]:
        given = {"rate": self.rate, "channels": self.channels}
        return self._doc(kind=self.kind, **{name: value for name, value in given.items() if value is not None})

    @property
    def element(self) -> Element:
        return "float32", (None, self.channels)

    def _check(self, value: Any) -> None:
        self.encode(value)

    def encode(self, value: Any) -> Buffer:
        data = given_bytes(value, "a sound")
        if sound_format(data) is None:
            raise SchemaError(
                f"expected the bytes of a WAV, FLAC, MP3, Ogg, AIFF, AU or CAF file, found {describe(data)}; arrays are"
                " for Array('float32', (None, None))"
            )
        return data

    def decode(self, buf: Buffer) -> Sound:
        values, rate = read_sound(buf)
        values = with_channels(values, self.channels)
        return values if self.rate is None else resampled(values, rate, self.rate)


def with_channels(values: Sound, channels: int | None) -> Sound:
    """A sound [frames, n] as [frames, channels].

    Raises:
        CorruptBlobError: It has another number, which cannot become this one.
    """
    there = values.shape[1]
    if channels is None or there == channels:
        return values
    if channels == 1:
        return np.ascontiguousarray(values.mean(axis=1, keepdims=True, dtype=np.float32))
    if there == 1:
        return np.repeat(values, channels, axis=1)
    raise CorruptBlobError(
        f"expected a sound of {channels} channels, found one of {there}: give channels=1 for their mean"
    )


def resampled(values: Sound, rate: int, wanted: int) -> Sound:
    """A sound [frames, channels] at another rate.

    Raises:
        MissingExtraError: soxr is not installed.
    """
    if rate == wanted:
        return values
    try:
        import soxr
    except ImportError:
        raise MissingExtraError("sound is resampled with soxr: pip install 'tensordb-data[audio]'") from None
    if not len(values):
        return values
    return np.ascontiguousarray(soxr.resample(values, rate, wanted), np.float32)
