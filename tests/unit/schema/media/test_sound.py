"""Encoded sound: what is read, and what parts of it are."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Audio, QueryError, Window
from tensordb_data.errors import CorruptBlobError, MissingExtraError, SampleError, SchemaError
from tensordb_data.schema import field_from_doc
from tensordb_data.schema.media.sound import sound_format, sound_info
from tests.media.recordings import sound

FORMS = [("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", None), ("AU", None)]
FILES = {(form, kind): sound(24_000, form=form, subtype=kind) for form, kind in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_is_what_soundfile_reads(form: Any) -> None:
    data = FILES[form]
    assert bytes(Audio().encode(memoryview(data))) == data
    found = Audio().decode(data)
    expected = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == expected.shape
    assert np.abs(found - expected).max() <= (1e-6 if form[0] == "MP3" else 0)  # soundfile seeks, and MP3 remembers
    assert np.array_equal(found, Audio().decode(data))
    assert sound_info(data) == (8000, 2, 24_000)
    assert Audio(channels=1).decode(data).shape == (24_000, 1)
    assert Audio(rate=4000).decode(data).shape == (12_000, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [0, 0.301, 1.5, 2, "end", "middle", "start"])
def test_a_window_is_exactly_that_part_of_the_sound(form: Any, at: Any) -> None:
    data = FILES[form]
    start = {"start": 0, "end": 16_000, "middle": 8000}[at] if isinstance(at, str) else round(at * 8000)
    window = Window(seconds=1, at=at)
    assert np.array_equal(window.decode(Audio(), data, None, None), Audio().decode(data)[start : start + 8000])


@given(st.integers(1, 9000), st.floats(0.01, 1), st.sampled_from([None, 4000, 8000, 11_025]), st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_window_is_as_long_as_it_says_and_a_function_of_the_key(
    n: int, seconds: float, rate: int | None, key: int
) -> None:
    data = sound(n)
    window = Window(seconds, rate=rate, mono=True, pad="zeros")

    def draw(pad: Any = "zeros") -> Any:
        rng = np.random.Generator(np.random.Philox(key=key))
        return Window(seconds, rate=rate, mono=True, pad=pad).decode(Audio(), data, rng, None)

    found = draw()
    assert found.shape == (max(1, round(seconds * (rate or 8000))), 1) and found.dtype == np.float32
    assert np.array_equal(found, draw()) and window.gives(Audio(8000)).element == ("float32", found.shape)
    if n < seconds * 8000 - 1:
        assert draw("loop").shape == found.shape
        with pytest.raises(SampleError, match='or "loop" fills it up'):
            draw("error")


def test_a_resampled_window_is_that_part_of_the_resampled_sound() -> None:
    t = np.arange(44_100 * 2) / 44_100
    out = io.BytesIO()
    soundfile.write(out, np.sin(2 * np.pi * 440 * t).astype(np.float32) / 2, 44_100, format="FLAC", subtype="PCM_24")
    for at in (0.25, 0.777, 1.0):
        found = Window(0.5, rate=16_000, at=at).decode(Audio(), out.getvalue(), None, None)[:, 0]
        first = round(at * 44_100) / 44_100
        expected = np.sin(2 * np.pi * 440 * (first + np.arange(8000) / 16_000)) / 2
        assert np.abs(found - expected).max() < 1e-3


def test_a_short_sound_is_filled_up() -> None:
    data = sound(100, channels=1)
    whole = Audio().decode(data)
    zeros = Window(0.02, pad="zeros", at="start").decode(Audio(), data, None, None)
    assert np.array_equal(zeros[:100], whole) and not zeros[100:].any()
    loop = Window(0.03, pad="loop", at="start").decode(Audio(), data, None, None)
    assert np.array_equal(loop, np.concatenate([whole, whole, whole[:40]]))
    with pytest.raises(SampleError, match=r"2\.020 seconds or more, found one of 0\.013"):
        Window(0.02, pad="zeros", at=2).decode(Audio(), data, None, None)


@pytest.mark.parametrize("form", [("WAV", None), ("FLAC", None), ("MP3", None)])
def test_a_sound_that_was_cut_off_is_damaged(form: Any) -> None:
    data = FILES[form]
    with pytest.raises(CorruptBlobError):
        Audio().decode(data[: len(data) // 2])


@given(st.sampled_from(list(FILES.values())), st.integers(0, 400), st.binary(max_size=40))
@settings(max_examples=80)
def test_garbage_is_an_error_of_ours(data: bytes, at: int, noise: bytes) -> None:
    for garbled in (data[:at] + noise + data[at + len(noise) :], data[:at], noise):
        for field in (Audio(), Audio(rate=8000, channels=1)):
            try:
                assert field.decode(garbled).ndim == 2
            except (CorruptBlobError, MissingExtraError):
                pass


def test_what_is_no_sound() -> None:
    for data in (b"RIFF\0\0\0\0WEBP", b"", b"\xff\xd8\xff\xe0", b"OggS" + bytes(24) + b"\x80theora"):
        assert sound_format(data) is None
    for value in (b"", b"nothing", 3, np.zeros(4, np.float32)):
        with pytest.raises(SchemaError, match=r"a sound|WAV, FLAC"):
            Audio().encode(value)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORDB_MAX_AUDIO", "100")
    with pytest.raises(CorruptBlobError, match=r"at most 100 numbers.*TENSORDB_MAX_AUDIO"):
        Audio().decode(FILES["WAV", None])
    with pytest.raises(CorruptBlobError, match="at most 100 numbers"):
        Window(1, at=0).decode(Audio(), FILES["WAV", None], None, None)
    with pytest.raises(CorruptBlobError, match="5 channels, found one of 2"):
        Audio(channels=5).decode(sound(20))
    assert Audio(channels=3).decode(sound(20, channels=1)).shape == (20, 3)


def test_without_soundfile_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[audio\]"):
        Audio().decode(FILES["WAV", None])
    monkeypatch.setitem(sys.modules, "soxr", None)


def test_documents_and_bad_arguments() -> None:
    for field in (Audio(), Audio(16_000), Audio(channels=1, optional=True), Audio(8000, 2)):
        assert field_from_doc(field.to_doc()) == field
    assert repr(Audio(channels=1)) == "Audio(channels=1)"
    for doc in ({"rate": "x"}, {"rate": -1}, {"rate": []}, {"rate": True}, {"channels": {}}, {"channels": 10**9}):
        with pytest.raises(SchemaError):
            field_from_doc({"kind": "audio", **doc})
    for wrong in (0, -1, "2", True, float("nan"), float("inf"), None):
        with pytest.raises(QueryError, match="seconds"):
            Window(wrong)  # type: ignore[arg-type]
    for options in ({"rate": 0}, {"rate": 1.5}, {"mono": 1}, {"pad": "last"}, {"at": "there"}, {"at": -1}):
        with pytest.raises(QueryError):
            Window(1, **options)  # type: ignore[arg-type]
