"""Clip: some frames of a video, at a random place or at one that is named."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.schema.array import Array
from tensordb_data.schema.field import BlobField, Buffer, Field
from tensordb_data.schema.media.frames import Frames, Times, read_frames, times_of
from tensordb_data.schema.media.video import TABLE, Video
from tensordb_data.schema.views.place import At, check_at, is_count, start_of
from tensordb_data.schema.views.view import View

Pad = Literal["error", "last", "loop"]
_LEAST = 1e-9  # of a second: times that are equal but for rounding


@dataclasses.dataclass(frozen=True)
class Clip(View):
    """Frames of each video: `decode={"video": Clip(frames=16, stride=2)}`. uint8 [frames, height, width, 3].

    Either so many frames, each `stride` frames after the one before; or those that are shown at `rate` times a second,
    for so many seconds, whatever the rate of the video is. A random place is a function of the seed, the position of
    the sample and the name of the field alone. So a resume delivers the same clips, and each pass has others.

    Args:
        frames: How many frames.
        stride: How many frames the video goes on from one to the next.
        seconds: How long, in place of `frames`.
        rate: Frames a second, with `seconds`.
        at: `"random"`, `"start"`, `"middle"`, `"end"`, or the second at which the clip begins.
        pad: What to do with a video that is too short: `"error"` makes it a bad sample; `"last"` repeats the last
            frame, `"loop"` begins the video again.

    Raises:
        QueryError: A value is not what it should be.
    """

    frames: int | None = None
    stride: int = 1
    seconds: float | None = None
    rate: float | None = None
    at: At = "random"
    pad: Pad = "error"

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.seconds is None) or (self.seconds is None) != (self.rate is None):
            raise QueryError(f"Clip takes frames= and stride=, or seconds= and rate=. Found: {self!r}")
        for name in ("frames", "stride"):
            value = getattr(self, name)
            if value is not None and not is_count(value):
                raise QueryError(f"Clip({name}=) is a whole number from 1. Found: {value!r}")
        for name in ("seconds", "rate"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6
            ):
                raise QueryError(f"Clip({name}=) is a number above 0. Found: {value!r}")
        if self.seconds is not None and self.stride != 1:
            raise QueryError(f"Clip(stride=) goes with frames=, and seconds= with rate=. Found: {self!r}")
        if self.pad not in ("error", "last", "loop"):
            raise QueryError(f'Clip(pad=) is "error", "last" or "loop". Found: {self.pad!r}')
        check_at("Clip", self.at)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the place is random."""
        return self.at == "random"

    @property
    def advice(self) -> str:
        return "and it is for video"

    def takes(self, field: Field) -> bool:
        return isinstance(field, Video)

    def gives(self, field: Field) -> Field:
        return Array("uint8", (self._count, None, None, 3), optional=field.optional)

    def beside(self, name: str) -> str:
        return name + TABLE

    def to_doc(self) -> dict[str, Any]:
        return {"clip": dataclasses.asdict(self)}

    @property
    def _count(self) -> int:
        return self.frames if self.frames is not None else max(1, round((self.seconds or 0) * (self.rate or 0)))

    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> Frames:
        times = times_of(buf, beside)
        numbers = self._by_number(times, rng) if self.seconds is None else self._by_time(times, rng)
        return read_frames(buf, times, numbers.tolist())

    def _by_number(self, times: Times, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        total = len(times.pts)
        need = (self._count - 1) * self.stride + 1
        if isinstance(self.at, str):
            start = start_of(self.at, total, need, 1, rng)
        else:
            start = int(_shown(times, np.array([self.at]))[0])
        numbers = start + self.stride * np.arange(self._count)
        if numbers[-1] >= total:
            if self.pad == "error":
                raise SampleError(self._too_short(f"{start + need} frames", str(total)))
            numbers = np.minimum(numbers, total - 1) if self.pad == "last" else numbers % total
        return numbers

    def _by_time(self, times: Times, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
        assert self.seconds is not None and self.rate is not None
        room = max(0.0, times.duration - self.seconds)
        if not isinstance(self.at, str):
            start = float(self.at)
        elif self.at == "random":
            assert rng is not None
            start = float(rng.uniform(0, room))
        else:
            start = {"start": 0.0, "middle": room / 2, "end": room}[self.at]
        wanted = start + np.arange(self._count) / self.rate
        end = times.duration or _LEAST
        if (wanted[-1] >= end + _LEAST and self._count > 1) or start >= end + _LEAST:
            if self.pad == "error":
                raise SampleError(self._too_short(f"{wanted[-1]:.3f} seconds", f"{times.duration:.3f}"))
            wanted = wanted % end if self.pad == "loop" else wanted
        return _shown(times, wanted)

    def _too_short(self, need: str, found: str) -> str:
        return f'expected a video of {need} or more, found one of {found}; Clip(pad="last") or "loop" fills it up'


def _shown(times: Times, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The numbers of the frames that are shown at some times."""
    numbers = np.searchsorted(times.seconds, seconds + _LEAST, side="right") - 1
    return np.maximum(numbers, 0).astype(np.int64)
