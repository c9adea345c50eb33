"""DICOM files and series of them, read with pydicom. A series is stored as a ZIP file of its files, not compressed."""

from __future__ import annotations

import decimal
import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError, MissingExtraError, QueryError, TensorDBError
from tensordb_data.schema.field import Buffer
from tensordb_data.schema.media.scaling import Voxels, check_voxels, is_whole, rescaled

_ZIP = b"PK\x03\x04"
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # of which a few bytes can stand for gigabytes
_MOST_FILES = 100_000
_NEAR = 1e-3
_NO_VALUES = ("SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN", "AT")
_FLOATS, _INTS = ("DS", "FL", "FD"), ("IS", "US", "SS", "UL", "SL", "UV", "SV")


def is_dicom(data: Buffer) -> bool:
    """Whether the bytes begin like a DICOM file."""
    return bytes(data[128:132]) == b"DICM"


def is_series(data: Buffer) -> bool:
    """Whether the bytes begin like a series, as `pack` makes it."""
    return bytes(data[:4]) == _ZIP


def pack(files: Sequence[bytes]) -> bytes:
    """The files of a series as one, each byte for byte. Equal files make an equal one."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, data in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.dcm"), data)
    return out.getvalue()


def unpack(data: Buffer) -> list[bytes]:
    """The files of a series.

    Raises:
        CorruptBlobError: It is no such file, or compressed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or len(members) > _MOST_FILES or sum(member.file_size for member in members) > len(data):
                raise CorruptBlobError("expected a ZIP of DICOM files that is not compressed, found another one")
            return [archive.read(member) for member in sorted(members, key=lambda member: member.filename)]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"expected a ZIP of DICOM files, found a damaged one: {error}") from None


def read_tags(data: Buffer, *, pixels: bool = False) -> Any:
    """A DICOM file, as a `pydicom.Dataset`.

    Args:
        data: The file.
        pixels: Whether to read all of it. Otherwise it has the tags that say what the file is, and no others.

    Raises:
        CorruptBlobError: It is damaged.
        MissingExtraError: pydicom is not installed.
    """
    return read_from(io.BytesIO(data), pixels=pixels)


def read_from(file: BinaryIO, *, pixels: bool = False, more: Iterable[str] = ()) -> Any:
    """The same as `read_tags`, of an open file, of which no more is read than is needed; `more` names further tags."""
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("DICOM is read with pydicom: pip install 'tensordb-data[medical]'") from None
    head = file.read(2048)
    file.seek(0)
    if not is_dicom(head):
        raise CorruptBlobError(f"expected a DICOM file, found bytes beginning {head[:8]!r}")
    if _DEFLATED in head:
        raise CorruptBlobError("a DICOM file that is deflated as a whole is not read: write it without")
    try:
        wanted: Any = None if pixels else [*_TAGS, *more]
        return pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=wanted)
    except Exception as error:  # what a damaged file leads to is not limited to a few errors
        raise CorruptBlobError(f"expected a DICOM file, found a damaged one: {error}") from None


def kind_of(keyword: str) -> str:
    """The kind of index field that takes a tag: float, int, str, or json for one that may have several values.

    Raises:
        QueryError: DICOM has no such tag, or its values are no numbers and texts.
        MissingExtraError: pydicom is not installed.
    """
    try:
        from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
    except ImportError:
        raise MissingExtraError("DICOM is read with pydicom: pip install 'tensordb-data[medical]'") from None
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise QueryError(f"tags= takes keywords of DICOM such as 'PatientAge', and there is no {keyword!r}")
    found = dictionary_VR(tag)
    if found in _NO_VALUES or " or " in found:
        raise QueryError(f"tags= takes tags with numbers and texts, and the values of {keyword!r} are none ({found})")
    if dictionary_VM(tag) != "1":
        return "json"
    return "float" if found in _FLOATS else "int" if found in _INTS else "str"


def value_of(tags: Any, keyword: str, kind: str) -> Any:
    """The value of a tag, as its kind; None if the file has none.

    Raises:
        CorruptBlobError: It is of another kind.
    """
    try:
        found = tags.get(keyword)
        if found is None or (isinstance(found, str) and not found.strip()):
            return None
        many = not isinstance(found, (str, bytes)) and isinstance(found, Sequence)
        if kind == "json":
            return [_plain(value) for value in found] if many else [_plain(found)]
        if many:
            raise ValueError(f"{len(found)} values")
        return float(found) if kind == "float" else int(found) if kind == "int" else str(found).strip() or None
    except Exception as error:  # values are read when they are asked for, and may be of any form
        raise CorruptBlobError(f"{keyword}: expected a value of the kind {kind}, found {error}") from None


def _plain(value: Any) -> float | int | str:
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, (float, decimal.Decimal)) else str(value).strip()


def has_pixels(tags: Any) -> bool:
    """Whether a file is a picture, and no report or plan."""
    return bool(number(tags, "Rows") and number(tags, "Columns"))


def number(tags: Any, name: str, missing: float = 0) -> float:
    """The value of a tag as a finite number."""
    try:
        found = float(tags.get(name, missing))
    except Exception:  # values are read when they are asked for, and may be of any form
        return missing
    return found if math.isfinite(found) else missing


def numbers(tags: Any, name: str, count: int) -> npt.NDArray[np.float64] | None:
    """The values of a tag as so many finite numbers; None if it has not these."""
    try:
        found = np.array([float(value) for value in tags.get(name)], np.float64)
    except Exception:
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def scale_of(tags: Any) -> tuple[float, float]:
    """Slope and intercept of a file."""
    slope = number(tags, "RescaleSlope", 1)
    return slope or 1.0, number(tags, "RescaleIntercept", 0)


def plain_dtype(tags: Any) -> str:
    """A dtype that holds the numbers that a file means, by its header: int16, int32 or float32."""
    slope, intercept = scale_of(tags)
    if not is_whole(slope, intercept) or any(name in tags for name in (*_GROUPS, "ModalityLUTSequence")):
        return "float32"
    bits = min(32, max(1, int(number(tags, "BitsStored", 16))))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if number(tags, "PixelRepresentation") else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    fitting = (n for n in ("int16", "int32") if np.iinfo(n).min <= ends[0] and ends[1] <= np.iinfo(n).max)
    return next(fitting, "float32")


_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "BodyPartExamined",
    "Manufacturer", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsStored",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def read_dicom(data: Buffer) -> Voxels:
    """The numbers of a DICOM file, or of a series, [slices, rows, columns]; of colours [slices, rows, columns, 3].

    Raises:
        CorruptBlobError: It is damaged, too large, or of slices that do not belong together.
        MissingExtraError: pydicom, or what it needs for this compression, is not installed.
    """
    if not is_series(data):
        return _slices(read_tags(data, pixels=True))
    files = unpack(data)
    if not files:
        raise CorruptBlobError("expected a series of DICOM files, found none")
    parts = [_slices(read_tags(file, pixels=True)) for file in files]
    if len({part.shape[1:] for part in parts}) > 1:
        raise CorruptBlobError(f"expected slices of one size, found {parts[0].shape[1:]} and others")
    check_voxels(sum(part.size for part in parts))
    return np.concatenate(parts)


def _slices(tags: Any) -> Voxels:
    frames, rows, columns = (int(number(tags, n, 1)) for n in ("NumberOfFrames", "Rows", "Columns"))
    check_voxels(max(1, frames) * rows * columns * max(1, int(number(tags, "SamplesPerPixel", 1))))
    try:
        raw = np.asarray(tags.pixel_array)
    except TensorDBError:
        raise
    except Exception as error:  # of plug-ins of pydicom, which may raise anything
        if "missing dependencies" in str(error) or "missing required dependencies" in str(error):
            raise MissingExtraError(f"{error}; pylibjpeg with its plug-ins, or gdcm, reads most of them") from None
        raise CorruptBlobError(f"expected pixels, found none that can be decoded: {error}") from None
    colours = int(number(tags, "SamplesPerPixel", 1)) > 1
    if raw.ndim == (3 if colours else 2):
        raw = raw[None]
    return raw if colours else _rescaled(raw, tags)


def _rescaled(raw: Voxels, tags: Any) -> Voxels:
    """The numbers that are meant. A file of many frames may say for each of them what they mean."""
    if "ModalityLUTSequence" in tags:
        from pydicom.pixels.processing import apply_modality_lut

        try:
            return np.asarray(apply_modality_lut(raw, tags))
        except Exception as error:
            raise CorruptBlobError(f"expected a table of the values, found a damaged one: {error}") from None
    if not any(name in tags for name in _GROUPS):
        return rescaled(raw, *scale_of(tags))
    scales = [_frame_scale(tags, frame) for frame in range(len(raw))]
    if len(set(scales)) == 1:
        return rescaled(raw, *scales[0])
    return np.stack([rescaled(one, *scale).astype(np.float64) for one, scale in zip(raw, scales, strict=True)])


def _frame_scale(tags: Any, frame: int) -> tuple[float, float]:
    for name, index in ((_GROUPS[1], frame), (_GROUPS[0], 0)):
        try:
            return scale_of(tags[name][index].PixelValueTransformationSequence[0])
        except Exception:  # it is not there, or not a sequence
            continue
    return scale_of(tags)


def normal_of(tags: Any) -> npt.NDArray[np.float64] | None:
    """The direction of the slices of a file, of length 1; None if it does not say."""
    axes = numbers(tags, "ImageOrientationPatient", 6)
    if axes is None:
        return None
    normal = np.cross(axes[:3], axes[3:])
    length = float(np.linalg.norm(normal))
    return None if length < _NEAR else np.asarray(normal / length, np.float64)


def order_of(slices: Sequence[Any]) -> list[int]:
    """The order of the slices of a series, by their places in space.

    Raises:
        CorruptBlobError: They do not say where they are, are turned otherwise, or two are at one place.
    """
    if len(slices) == 1:
        return [0]
    normal = normal_of(slices[0])
    places = [numbers(tags, "ImagePositionPatient", 3) for tags in slices]
    if normal is None or any(place is None for place in places):
        raise CorruptBlobError("expected slices that say where they are (ImagePositionPatient), found some that do not")
    first = numbers(slices[0], "ImageOrientationPatient", 6)
    for tags in slices[1:]:
        axes = numbers(tags, "ImageOrientationPatient", 6)
        if axes is None or first is None or np.abs(axes - first).max() > _NEAR:
            raise CorruptBlobError("expected slices of one direction, found others in the same series")
    along = np.array([float(np.dot(place, normal)) for place in places if place is not None])
    order = np.argsort(along, kind="stable")
    if (np.diff(along[order]) < _NEAR).any():
        raise CorruptBlobError(
            "expected one slice at each place, found several: a series of several times or echoes is no one volume"
        )
    return [int(n) for n in order]


def affine_of(slices: Sequence[Any]) -> npt.NDArray[np.float64] | None:
    """float64 [4, 4]: from (slice, row, column) to millimetres, to the right, front and top; None if it is not known.

    Args:
        slices: The files of the series, in their order.
    """
    tags = slices[0]
    axes, place = numbers(tags, "ImageOrientationPatient", 6), numbers(tags, "ImagePositionPatient", 3)
    spacing, normal = numbers(tags, "PixelSpacing", 2), normal_of(tags)
    if axes is None or place is None or spacing is None or normal is None:
        return None
    step = normal * (number(tags, "SpacingBetweenSlices") or number(tags, "SliceThickness") or 1)
    if len(slices) > 1 and (last := numbers(slices[-1], "ImagePositionPatient", 3)) is not None:
        step = (last - place) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([step, axes[3:] * spacing[0], axes[:3] * spacing[1], place], axis=1)
    affine[:2] *= -1  # DICOM counts to the left and to the back
    return affine


def dicom_affine(data: Buffer) -> npt.NDArray[np.float64] | None:
    """As `affine_of`, of the stored bytes of a file or a series.

    Raises:
        CorruptBlobError: They are damaged.
        MissingExtraError: pydicom is not installed.
    """
    return affine_of([read_tags(file) for file in (unpack(data) if is_series(data) else [data])])


def is_even(slices: Sequence[Any]) -> bool:
    """Whether the slices of a series, in their order, lie at equal distances."""
    normal = normal_of(slices[0])
    places = [numbers(tags, "ImagePositionPatient", 3) for tags in slices]
    if len(slices) < 3 or normal is None:
        return True
    steps = np.diff([float(np.dot(place, normal)) for place in places if place is not None])
    return bool(np.abs(steps - steps.mean()).max() <= 0.01 * abs(steps.mean()))
