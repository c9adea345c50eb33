"""Volumes: the values that are meant, in the right order, and where they are in space."""

from __future__ import annotations

import io
import sys
import zipfile
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Volume
from tensordb_data.errors import CorruptBlobError, MissingExtraError, SchemaError, TensorDBError
from tensordb_data.schema import field_from_doc
from tensordb_data.schema.media.dicom import affine_of, order_of, pack, plain_dtype, read_tags, unpack
from tensordb_data.schema.media.nifti import read_header
from tests.media.volumes import dicom, nifti

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
def test_nifti_is_what_nibabel_reads(version: int, packed: bool, dtype: str) -> None:
    data = nifti(VALUES.astype(dtype), packed=packed, version=version)
    assert dtype[0] != ">" or packed or data[:2] == b"\0\0"
    assert bytes(Volume().encode(data)) == data
    found = Volume(np.dtype(dtype).newbyteorder("=").name).decode(data)
    assert np.array_equal(found, VALUES) and found.flags.c_contiguous and found.dtype.isnative
    assert np.array_equal(Volume().decode(memoryview(data)), VALUES.astype(np.float32))
    with pytest.raises(CorruptBlobError):
        Volume().decode(data[: len(data) - 9])


def test_nifti_slope_and_intercept() -> None:
    raw = np.array([[[0, 1, 2]]], np.int16)
    scaled = bytearray(nifti(raw))
    scaled[112:120] = np.array([0.5, 10], "<f4").tobytes()
    assert Volume().decode(scaled).tolist() == [[[10, 10.5, 11]]]
    assert read_header(bytes(scaled)).plain_dtype == "float32"
    with pytest.raises(CorruptBlobError, match="whole values, for int16, found others"):
        Volume("int16").decode(scaled)
    for slope, intercept, expected in ((0, 7, [0, 1, 2]), (np.nan, 7, [0, 1, 2]), (2, -1024, [-1024, -1022, -1020])):
        scaled[112:120] = np.array([slope, intercept], "<f4").tobytes()
        assert Volume("int16").decode(scaled).tolist() == [[expected]]
    with pytest.raises(CorruptBlobError, match="uint8 holds, found some from -1024 to -1020"):
        Volume("uint8").decode(scaled)


@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.sampled_from([-1.0, 1.0]), st.integers(0, 2),
       st.integers(0, 2))  # fmt: skip
@settings(max_examples=40)
def test_nifti_affine_is_that_of_nibabel(quatern: list[float], qfac: float, q_code: int, s_code: int) -> None:
    image = nibabel.Nifti1Image(VALUES, None)
    header = image.header
    header["pixdim"][:4] = qfac, 2, 3, 4
    part = np.array(quatern) / max(1, float(np.linalg.norm(quatern)) * 1.01)
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = part
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = 5, 6, 7
    header["srow_x"], header["srow_y"], header["srow_z"] = [1, 2, 3, 4], [0, 2, 1, 5], [1, 0, 2, 6]
    header["qform_code"], header["sform_code"] = q_code, s_code
    found = read_header(header.binaryblock + bytes(9)).affine
    expected = header.get_sform() if s_code else header.get_qform() if q_code else np.diag([2, 3, 4, 1])
    assert np.allclose(found, expected, atol=1e-5)


def test_nifti_that_is_not_read() -> None:
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for data, why in ((nifti(colours), "found RGB"), (nifti(VALUES.astype(np.complex64)), "found complex numbers")):
        with pytest.raises(CorruptBlobError, match=why):
            Volume().decode(data)
    broken = bytearray(nifti(VALUES))
    broken[40:42] = (9).to_bytes(2, "little")
    with pytest.raises(CorruptBlobError, match="1 to 7 dimensions"):
        Volume().decode(broken)


def test_a_dicom_file_has_the_values_that_are_meant() -> None:
    raw = np.arange(12, dtype=np.int16).reshape(3, 4)
    ct = dicom(raw, RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(Volume("int16").decode(ct), raw[None] - 1024)
    assert plain_dtype(read_tags(ct)) == "int32" and plain_dtype(read_tags(dicom(raw))) == "int16"
    few = dicom(raw, BitsStored=12, HighBit=11, RescaleIntercept=-1024, RescaleSlope=1)
    assert plain_dtype(read_tags(few)) == "int16"
    pet = dicom(raw, RescaleSlope=0.5, RescaleIntercept=1)
    assert Volume().decode(pet)[0, 0].tolist() == [1, 1.5, 2, 2.5] and plain_dtype(read_tags(pet)) == "float32"
    frames = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    assert np.array_equal(Volume("uint16").decode(dicom(frames)), frames)
    inverse = dicom(raw, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(Volume("int16").decode(inverse), raw[None])  # for display alone, the values are turned
    assert bytes(Volume().encode(ct)) == ct


def test_frames_may_have_slopes_of_their_own() -> None:
    frames = np.ones((2, 2, 2), np.int16)
    groups = []
    for slope in (2, 0.5):
        values = pydicom.Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, 1, "US"
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = [values]
        groups.append(group)
    data = dicom(frames, PerFrameFunctionalGroupsSequence=groups)
    assert Volume().decode(data)[:, 0, 0].tolist() == [3, 1.5]


def test_a_series_is_ordered_by_its_places() -> None:
    places = [4.0, 0.0, 2.0]
    files = [dicom(np.full((2, 3), k, np.int16), place, number=9 - k) for k, place in enumerate(places)]
    tags = [read_tags(data) for data in files]
    order = order_of(tags)
    assert order == [1, 2, 0]
    packed = pack([files[n] for n in order])
    assert unpack(packed) == [files[n] for n in order] and packed == pack([files[n] for n in order])
    assert Volume("int16").decode(packed)[:, 0, 0].tolist() == [1, 2, 0]
    affine = affine_of([tags[n] for n in order])
    assert affine is not None and np.allclose(affine @ [0, 0, 0, 1], [-1, -2, 0, 1])
    assert np.allclose(affine @ [2, 1, 2, 1], [-(1 + 2 * 0.25), -(2 + 1 * 0.5), 4, 1])
    with pytest.raises(CorruptBlobError, match="one slice at each place"):
        order_of([*tags, tags[0]])
    with pytest.raises(CorruptBlobError, match="say where they are"):
        order_of([tags[0], read_tags(dicom(np.zeros((2, 3), np.int16), None))])
    turned = read_tags(dicom(np.zeros((2, 3), np.int16), 9.0, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]))
    with pytest.raises(CorruptBlobError, match="one direction"):
        order_of([tags[0], turned])
    with pytest.raises(CorruptBlobError, match="one size"):
        Volume().decode(pack([files[0], dicom(np.zeros((4, 4), np.int16), 9.0)]))


def test_a_compressed_zip_is_no_series() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.dcm", bytes(10**6))
    with pytest.raises(CorruptBlobError, match="not compressed"):
        Volume().decode(out.getvalue())


@given(st.sampled_from(["nifti", "packed", "dicom", "series"]), st.integers(0, 900), st.binary(max_size=40))
@settings(max_examples=150)
def test_garbage_is_an_error_of_ours(kind: str, at: int, noise: bytes) -> None:
    data = FILES[kind]
    for garbled in (data[:at] + noise + data[at + len(noise) :], data[:at], data[at:]):
        try:
            assert Volume().decode(garbled).dtype == np.float32
        except (CorruptBlobError, MissingExtraError):
            pass


FILES = {
    "nifti": nifti(VALUES),
    "packed": nifti(VALUES, packed=True),
    "dicom": dicom(VALUES[0]),
    "series": pack([dicom(VALUES[0]), dicom(VALUES[1], 2.0)]),
}


def test_limits_and_what_is_no_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (b"", b"nothing", 3, VALUES):
        with pytest.raises(SchemaError, match=r"a volume|NIfTI or DICOM"):
            Volume().encode(value)
    monkeypatch.setenv("TENSORDB_MAX_VOXELS", "10")
    for data in FILES.values():
        with pytest.raises(CorruptBlobError, match="TENSORDB_MAX_VOXELS"):
            Volume().decode(data)
    monkeypatch.delenv("TENSORDB_MAX_VOXELS")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[medical\]"):
        Volume().decode(FILES["dicom"])
    assert Volume("int16").decode(FILES["nifti"]).shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", ["complex64", "bool", "x", [], "O", "bfloat16"])
def test_documents_and_bad_arguments(dtype: Any) -> None:
    assert field_from_doc(Volume("int16", optional=True).to_doc()) == Volume("int16", optional=True)
    assert repr(Volume("int16")) == "Volume('int16')" and Volume("uint8").element == ("uint8", None)
    with pytest.raises(TensorDBError):
        field_from_doc({"kind": "volume", "dtype": dtype})


@given(st.permutations(range(3)), st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3), st.integers(0, 99))
@settings(max_examples=30)
def test_turned_volumes_are_those_of_nibabel(axes: list[int], signs: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[axes] * signs * rng.uniform(0.5, 3, 3) + rng.uniform(-0.1, 0.1, (3, 3))
    values = rng.integers(-9, 9, (2, 3, 4, 2)).astype(np.int16)
    image = nibabel.Nifti1Image(values, affine)
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    data = image.to_bytes()
    found = Volume("int16", orient="RAS").decode(data)
    assert np.array_equal(found, canonical) and found.flags.c_contiguous
    assert np.array_equal(Volume("int16", orient="LPS").decode(data), canonical[::-1, ::-1])
    assert np.array_equal(
        Volume("int16", orient="SPR").decode(data), np.moveaxis(canonical[:, ::-1], 2, 0).swapaxes(1, 2)
    )


def test_turned_series_and_what_cannot_be_turned() -> None:
    # Slices to the top, rows to the back, columns to the left.
    data = pack([dicom(VALUES[k], float(k), number=k + 1) for k in range(2)])
    assert np.array_equal(Volume("int16").decode(data), VALUES)
    assert np.array_equal(Volume("int16", orient="RAS").decode(data), VALUES.transpose(2, 1, 0)[::-1, ::-1])
    assert np.array_equal(Volume("int16", orient="SPL").decode(data), VALUES)
    with pytest.raises(CorruptBlobError, match="says how it lies in space"):
        Volume(orient="RAS").decode(dicom(VALUES, None))
    with pytest.raises(CorruptBlobError, match="three dimensions"):
        Volume(orient="RAS").decode(nifti(VALUES[0]))
    for wrong in ("RA", "RRS", "RLS", "ras", "xyz", 3):
        with pytest.raises(SchemaError, match="orient such as 'RAS'"):
            Volume(orient=wrong)  # type: ignore[arg-type]
    field = Volume("int16", orient="RAS")
    assert field_from_doc(field.to_doc()) == field and "RAS" in repr(field) and "orient" not in Volume().to_doc()
