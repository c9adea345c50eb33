"""Small pictures of samples, against a real server."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tensordb_data import Array, Bytes, Image, QueryError, TensorDB
from tensordb_data.samples.pictures.encode import of_array, of_image, png
from tensordb_data.table import thumbnails as module


def encoded(height: int, width: int, suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def decoded(data: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # type: ignore[no-any-return]


def test_thumbnails_of_images_and_arrays(db: TensorDB) -> None:
    small, large, deep = encoded(10, 20, ".png"), encoded(400, 300), b""
    with db.data.writer("x", schema={"image": Image("unchanged", optional=True), "grid": Array("float32"),
                                     "raw": Bytes()}) as writer:  # fmt: skip
        for i, image in enumerate((small, large, None, deep or small)):
            values = {} if image is None else {"image": image}
            writer.add(grid=np.full((3, 30, 50), i, np.float32), raw=b"x", **values)
    sel = db.data.find({"dataset": "x"})
    first, second, last = sel.thumbnails("image", size=64)
    assert [one.id for one in (first, second, last)] == [sel.all()[i].id for i in (0, 1, 3)]
    assert (first.media, first.data, first.width, first.height) == ("image/png", small, 20, 10)
    assert (second.media, second.width, second.height) == ("image/jpeg", 48, 64) and len(second.data) < 12_000
    assert decoded(second.data).shape == (64, 48, 3) and second.error is None
    grids = sel.thumbnails("grid", size=16)
    assert [(one.width, one.height, one.media) for one in grids] == [(13, 8, "image/png")] * 4
    assert decoded(grids[0].data).shape == (8, 13)
    assert len(db.data.find({"dataset": "x"}, limit=2).thumbnails("grid")) == 2
    for field, size, message in (
        ("raw", 64, "found Bytes"),
        ("no", 64, "no such field"),
        ("grid", 5, "from 8 to 1024"),
    ):
        with pytest.raises(QueryError, match=message):
            sel.thumbnails(field, size)
    with pytest.raises(QueryError, match="only samples"):
        db.jobs.find().thumbnails("image")


def test_one_that_is_damaged_says_so(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(40, 40, ".png")
    with db.data.writer("x", schema={"image": Image()}, live=True) as writer:
        writer.add_many(image=[whole, whole[:-30], whole])
    found = db.data.find().thumbnails("image")
    assert [one.error is None for one in found] == [True, False, True] and "truncated" in str(found[1].error)
    monkeypatch.setattr(module, "_LARGEST", 10)
    assert all("too many" in str(one.error) for one in db.data.find().thumbnails("image"))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_a_png_has_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    found = decoded(png(pixels))
    if len(shape) == 3 and shape[2] > 1:
        found = cv2.cvtColor(found, cv2.COLOR_BGR2RGB if shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    assert (found.reshape(shape) == pixels).all()


def test_what_is_no_picture() -> None:
    for value in (np.zeros(3), np.float32(1), np.zeros((0, 2)), np.zeros((2, 2), complex), np.array([["a"]])):
        with pytest.raises(ValueError, match="no picture"):
            of_array(value, 8)
    with pytest.raises(ValueError, match="no JPEG"):
        of_image(b"GIF89a", 8)
    floats = decoded(of_array(np.array([[0.0, np.nan], [0.5, 1.0]]), 8)[0])
    assert floats.tolist() == [[0, 0], [127, 255]]
    assert decoded(of_array(np.array([[True, False]]), 8)[0]).tolist() == [[255, 0]]
    assert decoded(of_array(np.array([[-5, 5]], np.int16), 8)[0]).tolist() == [[0, 255]]
    assert decoded(of_array(np.array([[np.inf, np.inf]]), 8)[0]).tolist() == [[0, 0]]
