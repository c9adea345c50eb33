"""What `decode=` says of fields: encoded bytes, smaller JPEGs, and other kinds, wherever samples are delivered."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from torch.utils.data import DataLoader

from tensordb_data import Array, Image, Scalar, Scaled, TensorDB
from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError, SampleError, StateError
from tensordb_data.torch import MapDataset, QueryDataset

N = 10


def photo(n: int, turned: int = 1) -> bytes:
    pixels = cv2.resize(np.random.default_rng(n).integers(0, 255, (6, 8, 3), np.uint8), (64, 48))
    out, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x112] = turned
    PIL.Image.fromarray(pixels).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


FILES = [photo(n) for n in range(N)]


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    schema = {"image": Image("rgb"), "label": Scalar("int"), "box": Array("int64", (2,))}
    with db.data.writer("photos", schema=schema) as writer:
        for n, data in enumerate(FILES):
            writer.add(image=data, label=n, box=np.full(2, n))
    return db.data.find({"dataset": "photos"})


def delivered(batches: Any) -> dict[int, bytes]:
    found = {}
    for batch in batches:
        assert isinstance(batch["image"], list) and all(type(one) is bytes for one in batch["image"])
        found.update(zip(np.asarray(batch["label"]).tolist(), batch["image"], strict=True))
    return found


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "ragged": "pad"}])
def test_encoded_bytes_are_those_of_the_files(sel: Selection[Any], options: dict[str, Any]) -> None:
    expected = dict(enumerate(FILES))
    stream = sel.stream(batch_size=4, passes=1, decode={"image": False}, **options)
    assert stream.element_spec()["image"] == (None, ())
    assert delivered(stream) == expected
    assert list(sel.encoded("image")) == FILES and sel.first().encoded("image") == FILES[0]


def test_encoded_bytes_in_pytorch(sel: Selection[Any]) -> None:
    decode = {"image": False}
    by_batch = DataLoader(QueryDataset(sel, batch_size=4, passes=1, decode=decode), batch_size=None, num_workers=1)
    by_sample = DataLoader(QueryDataset(sel, passes=1, decode=decode), batch_size=4)
    by_number = DataLoader(MapDataset(sel, decode=decode), batch_size=4)
    for loader in (by_batch, by_sample, by_number):
        assert delivered(loader) == dict(enumerate(FILES))
    assert sel.dataset(decode=decode)[3]["image"] == FILES[3]


def test_a_transform_gets_the_bytes(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=4, passes=1, decode={"image": False},
                        transform=lambda sample: {"size": len(sample["image"])})  # fmt: skip
    assert [size for batch in stream for size in batch["size"].tolist()] == [len(data) for data in FILES]


def test_scaled_jpegs_and_other_kinds(sel: Selection[Any]) -> None:
    def first(**decode: Any) -> Any:
        return next(iter(sel.stream(batch_size=N, decode=decode)))["image"]

    full = first()
    assert full.shape == (N, 48, 64, 3)
    assert first(image=True).shape == full.shape
    half = first(image=Scaled(24))
    assert half.shape == (N, 24, 32, 3)
    means = full.reshape(N, 24, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(means - half).mean() < 3
    assert first(image=Scaled(25)).shape == full.shape
    assert first(image=Scaled(6)).shape == (N, 6, 8, 3)
    assert first(image=Image("gray")).shape == (N, 48, 64)
    stream = sel.stream(batch_size=2, decode={"image": Image("gray")})
    assert stream.element_spec()["image"] == ("uint8", (None, None))


def test_a_state_fits_no_stream_that_decodes_to_other_values(sel: Selection[Any]) -> None:
    def stream(decode: Any) -> Any:
        return sel.stream(batch_size=4, shuffle=True, decode=decode)

    scaled = stream({"image": Scaled(24)})
    next(iter(scaled))
    state = scaled.state_dict()
    stream({"image": Scaled(24)}).load_state_dict(state)
    for other in (None, {"image": Scaled(12)}, {"image": Image("gray")}):
        with pytest.raises(StateError, match="another `decode`"):
            stream(other).load_state_dict(state)
    plain = stream(None)
    next(iter(plain))
    encoded = stream({"image": False})
    encoded.load_state_dict(plain.state_dict())  # the same values in another form
    assert next(iter(encoded))["label"].tolist() == next(iter(plain))["label"].tolist()


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        ({"picture": False}, "'picture', which is not delivered: image, label, box"),
        ({"label": False}, "only images, audio.*Found: Scalar"),
        ({"box": False}, "only images, audio.*Found: Array"),
        ({"box": Scaled(8)}, "it is for images"),
        ({"image": Array("uint8")}, "another kind"),
        ({"image": 3}, "Scaled.*Found for 'image': 3"),
        (["image"], "is a dict of fields"),
    ],
)
def test_what_cannot_be_decoded_so_is_refused_at_once(sel: Selection[Any], decode: Any, error: str) -> None:
    for make in (lambda: sel.stream(batch_size=2, decode=decode), lambda: sel.dataset(decode=decode)):
        with pytest.raises(QueryError, match=error):
            make()
    with pytest.raises(QueryError, match="not delivered: label"):
        sel.stream(batch_size=2, fields=["label"], decode={"image": False})
    for wrong in (0, -1, 2.5, True, "224"):
        with pytest.raises(QueryError, match="whole number of pixels"):
            Scaled(wrong)  # type: ignore[arg-type]


def test_a_damaged_image_is_a_bad_sample_where_it_is_decoded(db: TensorDB) -> None:
    with db.data.writer("bad", schema={"image": Image("rgb")}) as writer:
        writer.add(image=FILES[0])
        writer.add(image=FILES[1][:400])
    bad = db.data.find({"dataset": "bad"})
    with pytest.raises(SampleError, match="truncated"):
        list(bad.stream(batch_size=2, passes=1, decode={"image": Scaled(24)}))
    assert next(iter(bad.stream(batch_size=2, decode={"image": False})))["image"][1] == FILES[1][:400]


def test_orientation_is_a_choice(db: TensorDB) -> None:
    data = photo(0, turned=6)
    with db.data.writer("turned", schema={"image": Image("rgb", orient=True)}) as writer:
        writer.add(image=data)
    turned = db.data.find({"dataset": "turned"})
    assert db.data.schema("turned")["image"] == Image("rgb", orient=True)
    shown = np.rot90(Image("rgb").decode(data), -1)
    assert np.array_equal(turned.first()["image"], shown)
    plain = next(iter(turned.stream(batch_size=1, decode={"image": Image("rgb")})))
    assert np.array_equal(np.rot90(plain["image"][0], -1), shown)
    scaled = next(iter(turned.stream(batch_size=1, decode={"image": Scaled(24)})))
    assert scaled["image"].shape == (1, 32, 24, 3)
