from __future__ import annotations

import io
import pathlib
import struct
import sys

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.errors import CorruptBlobError, MissingExtraError, SchemaError
from tensordb_data.schema import Image, field_from_doc
from tensordb_data.schema.image import is_gray
from tensordb_data.schema.image_header import has_more_frames
from tensordb_data.schema.orientation import orientation

rng = np.random.default_rng(0)
GRAY = rng.integers(0, 256, (20, 30), np.uint8)
RGB = rng.integers(0, 256, (20, 30, 3), np.uint8)
RGBA = rng.integers(0, 256, (20, 30, 4), np.uint8)
DEEP = rng.integers(0, 65536, (20, 30), np.uint16)
SMOOTH = np.add.outer(np.arange(64, dtype=np.uint8), np.arange(96, dtype=np.uint8))


def png(pixels: npt.NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def jpeg(pixels: npt.NDArray[np.generic], **options: object) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "JPEG", quality=90, **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("pixels", [GRAY, RGB, RGBA])
def test_png_comes_back_as_it_was(pixels: npt.NDArray[np.uint8]) -> None:
    data = png(pixels)
    assert bytes(Image().encode(data)) == data
    found = Image().decode(memoryview(data))
    assert found.dtype == np.uint8
    assert (found == pixels).all()
    assert found.flags.c_contiguous and found.flags.writeable


def test_modes() -> None:
    assert (Image("rgb").decode(png(RGB)) == RGB).all()
    assert (Image("rgb").decode(png(GRAY)) == GRAY[:, :, None]).all()
    assert (Image("rgb").decode(png(RGBA)) == RGBA[:, :, :3]).all()
    assert (Image("gray").decode(png(GRAY)) == GRAY).all()
    assert Image("gray").decode(png(RGBA)).shape == (20, 30)
    assert [Image(mode).element for mode in ("unchanged", "rgb", "gray")] == [
        ("uint8", None),
        ("uint8", (None, None, 3)),
        ("uint8", (None, None)),
    ]


def test_16_bit_png() -> None:
    data = png(DEEP)
    found = Image(dtype="uint16").decode(data)
    assert found.dtype == np.uint16
    assert (found == DEEP).all()
    assert (Image("gray", "uint16").decode(data) == DEEP).all()
    with pytest.raises(SchemaError, match=r"found one of uint16: declare the field as Image\(dtype='uint16'\)"):
        Image().check(data)
    with pytest.raises(SchemaError, match="expected an image of uint16, found one of uint8"):
        Image(dtype="uint16").check(png(GRAY))


def test_palette_and_two_colours() -> None:
    out = io.BytesIO()
    PIL.Image.fromarray(RGB).quantize(16).save(out, "PNG")
    expected = np.asarray(PIL.Image.open(out).convert("RGB"))
    assert (Image().decode(out.getvalue()) == expected).all()
    out = io.BytesIO()
    PIL.Image.fromarray(GRAY).convert("1").save(out, "PNG")
    assert set(np.unique(Image().decode(out.getvalue()))) <= {0, 255}


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options: dict[str, object]) -> None:
    gray, colour = (
        jpeg(SMOOTH, **options),
        jpeg(np.stack([SMOOTH, SMOOTH.T.reshape(64, 96), 255 - SMOOTH], -1), **options),
    )
    assert Image().decode(gray).shape == (64, 96)
    assert np.abs(Image().decode(gray).astype(int) - SMOOTH).max() < 12
    expected = np.asarray(PIL.Image.open(io.BytesIO(colour)))
    for mode in ("unchanged", "rgb"):
        assert np.abs(Image(mode).decode(colour).astype(int) - expected).max() < 8


def test_exif_orientation_is_not_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = jpeg(SMOOTH, exif=exif.tobytes())
    for mode in ("unchanged", "rgb", "gray"):
        assert Image(mode).decode(data).shape[:2] == (64, 96)


def with_thumbnail(data: bytes) -> bytes:
    """The JPEG with a whole small JPEG inside its headers, as cameras write it."""
    inner = jpeg(SMOOTH[:16, :16])
    return data[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + data[2:]


@pytest.mark.parametrize("change", [bytes, with_thumbnail])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_jpeg_is_no_grey_picture(change: type[bytes], options: dict[str, object]) -> None:
    data = change(jpeg(np.repeat(np.repeat(RGB, 4, 0), 4, 1), **options))
    assert Image().decode(data).shape == (80, 120, 3)
    assert Image().decode(data + b"trailing bytes").shape == (80, 120, 3)
    for cut in (len(data) - 1, len(data) - 2, len(data) // 2, 700):
        with pytest.raises(CorruptBlobError, match=r"truncated|cannot read|damaged"):
            Image().decode(data[:cut])


def test_a_truncated_or_damaged_png() -> None:
    data = png(RGB)
    for cut in (len(data) - 1, len(data) - 12, len(data) // 2, 40):
        with pytest.raises(CorruptBlobError):
            Image().decode(data[:cut])


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8\xff\xe0 nothing \xff\xd9", b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82", b"", b"GIF89a", b"\xff\xd8\xff"],
)
def test_what_only_looks_like_an_image(data: bytes) -> None:
    with pytest.raises(CorruptBlobError):
        Image().decode(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_garbage_is_an_error_and_never_a_crash(tail: bytes, cut: int) -> None:
    for data in (b"\xff\xd8\xff" + tail, png(GRAY)[:cut] + tail, jpeg(SMOOTH)[:cut] + tail):
        try:
            Image().decode(data)
        except CorruptBlobError:
            pass


def test_paths_are_read(tmp_path: pathlib.Path) -> None:
    data = png(RGB)
    (tmp_path / "x.png").write_bytes(data)
    Image().check(tmp_path / "x.png")
    assert bytes(Image().encode(tmp_path / "x.png")) == data
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(SchemaError, match=r"JPEG or PNG.*x\.txt"):
        Image().check(tmp_path / "x.txt")
    with pytest.raises(SchemaError, match=r"found .*missing\.png: No such file"):
        Image().check(tmp_path / "missing.png")


@pytest.mark.parametrize("value", [b"GIF89a", b"", "x.png", 3, None, RGB])
def test_values_that_are_no_encoded_image(value: object) -> None:
    with pytest.raises(SchemaError, match="expected the bytes of a JPEG or PNG"):
        Image().check(value)


def test_bytes_are_named_once() -> None:
    with pytest.raises(SchemaError, match=r"found 4 bytes beginning b'nope'$"):
        Image().check(b"nope")
    with pytest.raises(SchemaError, match=r"found 0 bytes$"):
        Image().check(b"")


def test_other_forms_of_bytes() -> None:
    data = png(RGB)
    for value in (bytearray(data), memoryview(data)):
        Image().check(value)
        assert bytes(Image().encode(value)) == data


def test_no_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[images\]"):
        Image().decode(png(RGB))


def test_documents_and_bad_arguments() -> None:
    for field in (Image(), Image("rgb"), Image("gray", "uint16", optional=True)):
        assert field_from_doc(field.to_doc()) == field
    assert field_from_doc({"kind": "image"}) == Image()
    with pytest.raises(SchemaError, match="mode"):
        Image("bgr")
    with pytest.raises(SchemaError, match="dtype"):
        Image(dtype="float32")


@pytest.mark.parametrize("mode", ["unchanged", "rgb", "gray"])
@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_has_the_pixels_that_opencv_reads(mode: str, gray: bool, progressive: int) -> None:
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (5, 7) if gray else (5, 7, 3), np.uint8), (64, 48))
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mode == "rgb" or (mode == "unchanged" and not gray):
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (Image(mode=mode).decode(memoryview(data)) == expected).all()
    assert (Image(mode=mode).decode(data + b"\0" * 200) == expected).all()


def test_a_header_tells_whether_an_image_is_gray() -> None:
    gray, colour = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)
    for suffix in (".png", ".jpg"):
        for pixels, expected in ((gray, True), (colour, False)):
            data = cv2.imencode(suffix, pixels)[1].tobytes()
            assert is_gray(data) is expected
            assert is_gray(data[:20]) is None
    thumbnail = b"\xff\xe1" + (5000).to_bytes(2, "big") + b"\xff\xc0" * 2499
    data = cv2.imencode(".jpg", gray)[1].tobytes()
    assert is_gray(data[:2] + thumbnail + data[2:]) is True
    assert is_gray(b"") is None and is_gray(b"GIF89a") is None


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_indices_of_palettes(bits: int, width: int, height: int, adaptive: bool, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    indices = numbers.integers(0, 2**bits, (height, width), np.uint8)
    image = PIL.Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(numbers.integers(0, 256, 3 * 2**bits, np.uint8).tolist())
    file = io.BytesIO()
    image.save(file, "PNG", bits=bits, **({"transparency": 0} if adaptive else {}))
    field = Image("index")
    assert field.encode(file.getvalue()) == file.getvalue()
    np.testing.assert_array_equal(field.decode(file.getvalue()), indices)


def test_a_tiff_whose_directory_is_behind_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    data = cv2.imencode(".tif", pixels[:, :, ::-1])[1].tobytes()
    assert struct.unpack_from("<I", data, 4)[0] > 1 << 16
    np.testing.assert_array_equal(Image().decode(Image().encode(data)), pixels)


def test_indices_of_what_has_none() -> None:
    gray = bytes(cv2.imencode(".png", np.full((2, 2), 7, np.uint8))[1])
    np.testing.assert_array_equal(Image("index").decode(gray), np.full((2, 2), 7))
    with pytest.raises(SchemaError, match="found one with colours, which has no indices"):
        Image("index").encode(bytes(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1]))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_orientation_is_applied_where_it_is_asked_for(form: str, turned: int) -> None:
    out, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x112] = turned
    PIL.Image.fromarray(np.dstack([SMOOTH] * 3)).save(out, form, quality=95, exif=exif)
    data = out.getvalue()
    shown = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB"))
    for mode in ("rgb", "unchanged"):
        found = Image(mode, orient=True).decode(data)
        assert found.shape == shown.shape and found.flags.c_contiguous
        assert np.abs(found.astype(int) - shown).max() <= 4  # two decoders
    assert Image("rgb").decode(data).shape == (64, 96, 3)


@given(
    st.binary(max_size=60),
    st.sampled_from([b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n"]),
)
def test_orientation_of_garbage_is_upright(tail: bytes, head: bytes) -> None:
    assert 1 <= orientation(head + tail) <= 8


def test_a_document_says_that_an_image_is_turned_only_where_it_is() -> None:
    assert "orient" not in Image("rgb").to_doc()
    turned = Image("rgb", orient=True)
    assert field_from_doc(turned.to_doc()) == turned and repr(turned) == "Image('rgb', orient=True)"
    with pytest.raises(SchemaError, match="orient of True or False, found 1"):
        Image(orient=1)  # type: ignore[arg-type]


def test_16_bits_and_cmyk_and_the_first_frame() -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), np.uint16)
    for suffix in (".png", ".tiff"):
        data = cv2.imencode(suffix, deep)[1].tobytes()
        assert np.array_equal(Image("rgb", "uint16").decode(data), deep[:, :, ::-1])
        with pytest.raises(SchemaError, match="uint16"):
            Image("rgb").encode(data)
    out = io.BytesIO()
    PIL.Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(out, "JPEG")
    cyan = Image("rgb").decode(out.getvalue())
    assert cyan.shape == (8, 8, 3) and (np.abs(cyan[0, 0].astype(int) - [0, 255, 255]) <= 2).all()
    out = io.BytesIO()
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert Image("rgb").decode(out.getvalue())[0, 0].tolist() == [255, 0, 0]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 120), st.sampled_from(["rgb", "gray", "unchanged"]))
@settings(max_examples=30)
def test_a_scaled_jpeg_keeps_its_shorter_side(height: int, width: int, least: int, mode: str) -> None:
    data = jpeg(np.zeros((height, width), np.uint8))
    full, found = Image(mode).decode(data), Image(mode).decode_scaled(data, least)
    assert min(found.shape[:2]) >= min(least, height, width) and found.shape[2:] == full.shape[2:]
    factor = round(height / found.shape[0]) if height > 16 and width > 16 else 0
    if factor:
        assert factor in (1, 2, 4, 8) and found.shape[:2] == (-(-height // factor), -(-width // factor))
        assert factor == 8 or min(-(-height // (2 * factor)), -(-width // (2 * factor))) < least
    assert (Image(mode).decode_scaled(png(GRAY), 1) == Image(mode).decode(png(GRAY))).all()


@pytest.mark.parametrize("form", ["TIFF", "WEBP", "PNG"])
def test_further_frames_are_seen(form: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for count in (1, 3):
        out = io.BytesIO()
        frames[0].save(out, form, **({"save_all": True, "append_images": frames[1:]} if count > 1 else {}))
        assert has_more_frames(out.getvalue()) == (count > 1)
        assert has_more_frames(out.getvalue()[:12]) in (True, False)
