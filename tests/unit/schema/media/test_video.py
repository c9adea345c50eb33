"""Encoded video: frames are those that were asked for, by the numbers that they show."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Clip, QueryError, Video
from tensordb_data.errors import CorruptBlobError, MissingExtraError, SampleError, SchemaError
from tensordb_data.schema import field_from_doc
from tensordb_data.schema.media.containers import video_format
from tensordb_data.schema.media.frames import frame_times, read_frames, table_of, times_of
from tests.media.recordings import number_of, video

N = 48
KINDS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4, its own rate": {"vfr": True},
    "mp4, many key frames": {"gop": 2},
    "mp4, key frames alone": {"gop": 1, "b_frames": 0},
    "mov": {"form": "mov"},
    "mp4, open groups": {"open_gop": True},
    "matroska, open groups": {"form": "matroska", "open_gop": True},
    "av1": {"codec": "libsvtav1"},
    "matroska": {"form": "matroska"},
    "matroska, its own rate": {"form": "matroska", "vfr": True},
    "webm, vp8": {"form": "webm", "codec": "libvpx", "b_frames": 0},
    "webm, vp9": {"form": "webm", "codec": "libvpx-vp9", "b_frames": 0},
    "avi": {"form": "avi", "codec": "mpeg4", "b_frames": 0},
    "avi, h264": {"form": "avi"},
    "mpegts": {"form": "mpegts"},
    "flv": {"form": "flv"},
}
_made: dict[str, bytes] = {}


def made(kind: str) -> bytes:
    if kind not in _made:
        _made[kind] = video(N, **KINDS[kind])
    return _made[kind]


def numbers(frames: Any) -> list[int]:
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_that_were_asked_for(kind: str) -> None:
    data = made(kind)
    assert bytes(Video().encode(data)) == data
    whole = Video().decode(data)
    assert whole.shape == (N, 48, 64, 3) and whole.dtype == np.uint8 and numbers(whole) == list(range(N))
    times = frame_times(data)
    assert len(times.pts) == N and abs(times.duration - (1.92 if KINDS[kind].get("vfr") else 2)) < 0.05
    for wanted in ([40, 3, 3, 17], [47], [0], list(range(5, 37, 2)), [0, 47], [11, 12, 13]):
        assert np.array_equal(read_frames(data, times, wanted), whole[wanted])
    clip = Clip(frames=8, stride=3)
    for table in (table_of(data, times), None):
        found = numbers(clip.decode(Video(), data, np.random.default_rng(5), table))
        assert found == list(range(found[0], found[0] + 24, 3)) and 0 <= found[0] <= N - 22
        assert found == numbers(clip.decode(Video(), data, np.random.default_rng(5), None))


def test_the_encoder_of_the_tests_leaves_this_thread_as_urgent_as_it_was() -> None:
    before = os.sched_getscheduler(0)
    video(3, codec="libsvtav1")
    assert os.sched_getscheduler(0) == before == os.SCHED_OTHER


def test_a_table_of_another_video_or_a_made_up_one_is_not_believed() -> None:
    data, other = made("mp4"), made("mp4, its own rate")
    right = frame_times(data)
    own = table_of(data, right)
    assert times_of(data, own).unit == right.unit and np.array_equal(times_of(data, own).pts, right.pts)
    for table in (table_of(other, frame_times(other)), own[::-1], own[:2], own[:, :1], "x", np.zeros((9, 2)), own * 0):
        assert np.array_equal(times_of(data, table).pts, right.pts)
    lies = own.copy()
    lies[2:, 0] += 7
    with pytest.raises(CorruptBlobError, match="found none at number"):
        Clip(frames=4, at="start").decode(Video(), data, None, lies)


def test_frames_are_turned_as_the_video_says() -> None:
    plain = Video().decode(video(3))
    for rotation in (0, 90, 180, -90):
        found = Video().decode(data := video(3, rotation=rotation))
        with av.open(io.BytesIO(data)) as container:
            turns = round(next(container.decode(video=0)).rotation / 90)
        assert turns % 2 == rotation // 90 % 2
        assert np.abs(found.astype(int) - np.rot90(plain, turns, axes=(1, 2))).max() < 8


def test_clips_by_time() -> None:
    data = made("mp4, its own rate")  # frames 0, 1 are shown at 0 and 60 ms, 2 and 3 at 80 and 140 ms, …

    def clip(**options: Any) -> list[int]:
        return numbers(Clip(**options).decode(Video(), data, np.random.default_rng(1), None))

    shown = [2 * int(t // 80) + int(t % 80 >= 60) for t in range(0, 800, 50)]
    assert clip(seconds=0.8, rate=20, at="start") == shown
    assert clip(seconds=0.8, rate=20, at=0.8) == [20 + number for number in shown]
    assert clip(seconds=0.4, rate=50, at="end")[-1] == N - 1
    assert clip(frames=2, at=0.8) == [20, 21]
    assert clip(frames=3, stride=2, at="middle") == [21, 23, 25] and clip(frames=1, at="end") == [N - 1]
    assert len({tuple(clip(seconds=0.5, rate=10)) for _ in range(3)}) == 1


def test_a_short_video_is_filled_up() -> None:
    data = video(5)

    def clip(**options: Any) -> list[int]:
        return numbers(Clip(**options).decode(Video(), data, np.random.default_rng(1), None))

    assert clip(frames=4, stride=2, pad="last") == [0, 2, 4, 4]
    assert clip(frames=4, stride=2, pad="loop") == [0, 2, 4, 1]
    assert clip(seconds=10 / 24, rate=24, pad="loop") == [0, 1, 2, 3, 4] * 2
    assert clip(seconds=0.25, rate=24, pad="last") == [0, 1, 2, 3, 4, 4]
    for options in ({"frames": 4, "stride": 2}, {"seconds": 1, "rate": 10}, {"frames": 2, "at": 9}):
        with pytest.raises(SampleError, match='or "loop" fills it up'):
            clip(**options)


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_video_that_was_cut_off_is_damaged(kind: str) -> None:
    data = made(kind)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(CorruptBlobError):
            Video().decode(data[: int(part * len(data))])


@given(st.sampled_from(["mp4", "matroska", "avi", "mpegts", "flv"]), st.integers(0, 3000), st.binary(max_size=30))
@settings(max_examples=60)
def test_garbage_is_an_error_of_ours(kind: str, at: int, noise: bytes) -> None:
    data = made(kind)
    for garbled in (data[:at] + noise + data[at + len(noise) :], data[:at], noise):
        try:
            assert Clip(frames=2, pad="loop", at="end").decode(Video(), garbled, None, None).shape[0] == 2
        except CorruptBlobError:
            pass


@pytest.mark.parametrize(
    "text",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_lists_of_other_files_are_no_videos(text: bytes) -> None:
    assert video_format(text) is None
    with pytest.raises(SchemaError):
        Video().encode(text)
    with pytest.raises(CorruptBlobError):
        Video().decode(text)


def test_limits_and_what_is_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made("mp4")
    for value in (b"", b"nothing", 3, np.zeros((2, 4, 4, 3), np.uint8)):
        with pytest.raises(SchemaError, match=r"a video|MP4"):
            Video().encode(value)
    monkeypatch.setenv("TENSORDB_MAX_VIDEO", str(48 * 64 * 5))
    with pytest.raises(CorruptBlobError, match="TENSORDB_MAX_VIDEO"):
        Video().decode(data)
    assert len(Clip(frames=5, at="start").decode(Video(), data, None, None)) == 5
    with pytest.raises(CorruptBlobError, match="TENSORDB_MAX_VIDEO"):
        Clip(frames=6, at="start").decode(Video(), data, None, None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[video\]"):
        Video().decode(data)


def test_documents_and_bad_arguments() -> None:
    assert field_from_doc(Video(optional=True).to_doc()) == Video(optional=True) and repr(Video()) == "Video()"
    assert Clip(frames=16, stride=2).gives(Video()).element == ("uint8", (16, None, None, 3))
    wrong: list[dict[str, Any]] = [
        {}, {"frames": 0}, {"frames": 2.5}, {"frames": 2, "stride": 0}, {"frames": 2, "seconds": 1}, {"seconds": 1},
        {"rate": 2}, {"seconds": -1, "rate": 2}, {"seconds": 1, "rate": float("nan")}, {"frames": 2, "pad": "zeros"},
        {"frames": 2, "at": "there"}, {"frames": 2, "at": -1}, {"seconds": 1, "rate": 2, "stride": 3},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(QueryError, match="Clip"):
            Clip(**options)
