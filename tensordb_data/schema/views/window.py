"""Window: a part of a sound, at a random place or at one that is named."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from tensordb_data.errors import CorruptBlobError, QueryError, SampleError
from tensordb_data.schema.array import Array
from tensordb_data.schema.field import BlobField, Buffer, Field
from tensordb_data.schema.media.audio import MAX_RATE, Audio, resampled, with_channels
from tensordb_data.schema.media.sound import Sound, info_of, opened, read_part
from tensordb_data.schema.views.place import At, check_at, is_count, start_of
from tensordb_data.schema.views.view import View

Pad = Literal["error", "zeros", "loop"]
_MARGIN = 0.02  # seconds on either side of a window, without which its ends would be resampled as if all were silent


@dataclasses.dataclass(frozen=True)
class Window(View):
    """A part of each sound: `decode={"sound": Window(seconds=2, rate=16_000, mono=True)}`. float32 [frames, channels].

    A random place is a function of the seed, the position of the sample and the name of the field alone. So a resume
    delivers the same windows, and each pass has others.

    Args:
        seconds: How long it is.
        rate: Frames a second, to which it is resampled; None for the rate of the field, or of each sound.
        mono: Whether it is the mean of all channels, as [frames, 1].
        at: `"random"`, `"start"`, `"middle"`, `"end"`, or the second at which it begins.
        pad: What to do with a sound that is too short: `"error"` makes it a bad sample; `"zeros"` fills up with zeros
            at the end, `"loop"` begins the sound again.

    Raises:
        QueryError: A value is not what it should be.
    """

    seconds: float
    rate: int | None = None
    mono: bool = False
    at: At = "random"
    pad: Pad = "error"

    def __post_init__(self) -> None:
        given: Any = self.seconds
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < 1e6:
            raise QueryError(f"Window(seconds=) is a number above 0. Found: {given!r}")
        if self.rate is not None and (not is_count(self.rate) or self.rate > MAX_RATE):
            raise QueryError(f"Window(rate=) is a whole number of frames a second, from 1. Found: {self.rate!r}")
        if not isinstance(self.mono, bool):
            raise QueryError(f"Window(mono=) is True or False. Found: {self.mono!r}")
        if self.pad not in ("error", "zeros", "loop"):
            raise QueryError(f'Window(pad=) is "error", "zeros" or "loop". Found: {self.pad!r}')
        check_at("Window", self.at)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the place is random."""
        return self.at == "random"

    @property
    def advice(self) -> str:
        return "and it is for sound"

    def takes(self, field: Field) -> bool:
        return isinstance(field, Audio)

    def gives(self, field: Field) -> Field:
        assert isinstance(field, Audio)
        rate = self.rate or field.rate
        length = None if rate is None else self._length(rate)
        return Array("float32", (length, 1 if self.mono else field.channels), optional=field.optional)

    def to_doc(self) -> dict[str, Any]:
        return {"window": dataclasses.asdict(self)}

    def _length(self, rate: int) -> int:
        return max(1, round(self.seconds * rate))

    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> Sound:
        assert isinstance(field, Audio)
        with opened(buf) as sound:
            info = info_of(sound)
            if not 1 <= info.rate <= MAX_RATE:
                raise CorruptBlobError(f"expected a rate of 1 to {MAX_RATE}, found {info.rate}")
            rate = self.rate or field.rate or info.rate
            length = self._length(rate)
            need = length if rate == info.rate else math.ceil(length * info.rate / rate)
            start = start_of(self.at, info.frames, need, info.rate, rng)
            there = max(0, min(need, info.frames - start))
            if there < need and (self.pad == "error" or not there):
                raise SampleError(
                    f"expected a sound of {(start + need) / info.rate:.3f} seconds or more, found one of"
                    f' {info.frames / info.rate:.3f}; Window(pad="zeros") or "loop" fills it up'
                )
            before, after = self._margins(info.rate, rate, start, info.frames - start - there)
            part = read_part(buf, sound, start - before, before + there + after)
        part = with_channels(part, 1 if self.mono else field.channels)
        part = resampled(part, info.rate, rate)
        skip = before * rate // info.rate
        whole = there == need
        part = part[skip : skip + (length if whole else max(1, there * rate // info.rate))]
        return part if len(part) == length else self._filled(part, length, whole)

    def _filled(self, part: Sound, length: int, whole: bool) -> Sound:
        """A part that is too short, as long as the window. A whole one may lack a frame after it was resampled."""
        if self.pad == "loop" and not whole:
            return np.resize(part, (length, part.shape[1]))  # repeats it
        filled = np.zeros((length, part.shape[1]), np.float32)
        filled[: len(part)] = part
        return filled

    def _margins(self, rate: int, wanted: int, before: int, after: int) -> tuple[int, int]:
        """Frames to read before and after the window, which become a whole number of frames at the other rate."""
        if rate == wanted:
            return 0, 0
        unit = rate // math.gcd(rate, wanted)
        want = math.ceil(_MARGIN * rate / unit) * unit
        return min(want, before // unit * unit), min(want, after)
