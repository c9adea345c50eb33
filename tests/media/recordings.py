"""Sounds and videos that tests make themselves: what is in a frame says which one it is."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

BITS = 8
SIDE = 8  # pixels of a bit


def sound(frames: int = 8000, rate: int = 8000, channels: int = 2, form: str = "WAV", **options: Any) -> bytes:
    """A sound: in the first channel the number of each frame, as far as the format keeps it; in the others a tone."""
    t = np.arange(frames)
    tones = [np.sin(2 * np.pi * 50 * (k + 1) * t / rate) / 2 for k in range(1, channels)]
    values = np.stack([(t % 4096) / 8192, *tones], axis=1).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, values, rate, format=form, **options)
    return out.getvalue()


def video(
    frames: int = 48,
    form: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 24,
    vfr: bool = False,
    gop: int = 12,
    b_frames: int = 2,
    rotation: int | None = None,
    height: int = 48,
    open_gop: bool = False,
) -> bytes:
    """A video whose frames show their numbers, as bars. With `vfr`, odd ones are shown for longer."""
    out = io.BytesIO()
    with same_scheduling(), av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = BITS * SIDE, height, "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, b_frames
        context = stream.codec_context
        context.time_base = Fraction(1, 1000) if vfr else Fraction(1, rate)
        if codec == "libx264":
            stream.options = {"crf": "10", "bf": str(b_frames), "preset": "ultrafast" if not b_frames else "veryfast"}
        if open_gop:  # frames that are shown after a key frame may need what is before it
            stream.options = {"crf": "10", "x264-params": f"open-gop=1:keyint={gop}:bframes=3"}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        at = 0
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height), format="rgb24")
            frame.pts, frame.time_base = at, context.time_base
            at += (20 if number % 2 else 60) if vfr else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@contextlib.contextmanager
def same_scheduling() -> Iterator[None]:
    """Undo what an encoder does to this thread: that of AV1 makes it a real-time one, of all users' most urgent, if it
    is root's.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def picture(number: int, height: int = 48) -> npt.NDArray[np.uint8]:
    """The picture of a number; its left upper corner is red."""
    pixels = np.zeros((height, BITS * SIDE, 3), np.uint8)
    for bit in range(BITS):
        pixels[:, bit * SIDE : (bit + 1) * SIDE] = 255 * (number >> bit & 1)
    pixels[: height // 4, : 2 * SIDE] = (255, 0, 0)
    return pixels


def number_of(pixels: npt.NDArray[np.uint8]) -> int:
    """The number that a frame shows."""
    row = pixels[-4, SIDE // 2 :: SIDE, 1]
    return sum(int(value > 128) << bit for bit, value in enumerate(row))
