"""NIfTI files, `.nii` and `.nii.gz`: the header of version 1 or 2, and the numbers behind it."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError
from tensordb_data.schema.field import Buffer
from tensordb_data.schema.media.scaling import Voxels, check_voxels, is_whole, rescaled

_GZIP = b"\x1f\x8b"
_HEADER = 540
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_OTHERS = {1: "bits", 32: "complex numbers", 128: "RGB", 1536: "float128", 1792: "complex numbers",
           2048: "complex numbers", 2304: "RGBA"}  # fmt: skip
_ARRANGED: dict[int, dict[str, tuple[str, int]]] = {
    1: {"dim": ("8h", 40), "datatype": ("h", 70), "pixdim": ("8f", 76), "offset": ("f", 108), "slope": ("2f", 112),
        "codes": ("2h", 252), "quatern": ("6f", 256), "srow": ("12f", 280)},
    2: {"dim": ("8q", 16), "datatype": ("h", 12), "pixdim": ("8d", 104), "offset": ("q", 168), "slope": ("2d", 176),
        "codes": ("2i", 344), "quatern": ("6d", 352), "srow": ("12d", 400)},
}  # fmt: skip
"""For each version where its numbers lie."""


class NiftiHeader(NamedTuple):
    """What the header of a NIfTI file says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    """Where the numbers begin."""
    slope: float
    intercept: float
    """`slope` and `intercept`: a stored number stands for itself times the slope, plus the intercept."""
    affine: npt.NDArray[np.float64]
    """float64 [4, 4]: from the indices of the first three dimensions to millimetres, to the right, front and top."""

    @property
    def plain_dtype(self) -> str:
        """A dtype that holds all numbers that are meant."""
        if (self.slope, self.intercept) == (1, 0):
            return str(self.dtype.newbyteorder("=").name)
        return "int32" if self.dtype.kind in "iu" and is_whole(self.slope, self.intercept) else "float32"


def is_nifti(data: Buffer) -> bool:
    """Whether the bytes begin like a NIfTI file, or like a compressed one."""
    head = bytes(data[:_HEADER])
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(bytes(data[:4096]), _HEADER)
        except zlib.error:
            return False
    return _version(head) is not None


def read_header(data: Buffer) -> NiftiHeader:
    """The header of a NIfTI file.

    Raises:
        CorruptBlobError: It is damaged, or of a form that is not read.
    """
    head = _opened(data)(_HEADER)
    found = _version(head)
    if found is None:
        raise CorruptBlobError(f"expected a NIfTI file, found {len(data)} bytes beginning {bytes(data[:8])!r}")
    version, order = found
    values = {name: struct.unpack_from(order + kind, head, at) for name, (kind, at) in _ARRANGED[version].items()
              if at + struct.calcsize(order + kind) <= len(head)}  # fmt: skip
    if len(values) < len(_ARRANGED[version]):
        raise CorruptBlobError("expected a whole NIfTI header, found a shorter one")
    ndim, code = values["dim"][0], values["datatype"][0]
    if not 1 <= ndim <= 7 or any(n < 1 for n in values["dim"][1 : ndim + 1]):
        raise CorruptBlobError(f"expected 1 to 7 dimensions, found {values['dim'][: max(1, min(8, ndim + 1))]}")
    if code not in _DTYPES:
        raise CorruptBlobError(f"expected real numbers, found {_OTHERS.get(code, f'the data type {code}')}")
    offset = values["offset"][0]
    if not math.isfinite(offset) or not 0 <= offset < 2**40:
        raise CorruptBlobError(f"expected a place of the numbers, found {offset}")
    slope, intercept = values["slope"]
    if not math.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    shape = tuple(int(n) for n in values["dim"][1 : ndim + 1])
    return NiftiHeader(
        shape, np.dtype(_DTYPES[code]).newbyteorder(order), int(offset), float(slope),  # type: ignore[arg-type]
        float(intercept) if math.isfinite(intercept) else 0.0, _affine(values),
    )  # fmt: skip


def read_nifti(data: Buffer) -> Voxels:
    """The numbers that a NIfTI file means, in the order of its dimensions.

    Raises:
        CorruptBlobError: It is damaged, cut off, or too large.
    """
    header = read_header(data)
    count = math.prod(header.shape)
    check_voxels(count)
    size = count * header.dtype.itemsize
    if not bytes(data[:2]) == _GZIP and header.offset + size > len(data):
        raise CorruptBlobError(f"expected {header.offset + size} bytes, found {len(data)}: truncated")
    body = _opened(data)(header.offset + size)
    if len(body) < header.offset + size:
        raise CorruptBlobError(f"expected {header.offset + size} bytes, found {len(body)}: truncated")
    flat = np.frombuffer(body, header.dtype, count, header.offset)
    raw = flat.reshape(header.shape, order="F").astype(header.dtype.newbyteorder("="), order="C")
    return rescaled(raw, header.slope, header.intercept)


def _opened(data: Buffer) -> Any:
    """A function that gives the first n bytes of what is in a file."""
    if bytes(data[:2]) != _GZIP:
        return lambda n: bytes(data[:n])

    def read(n: int) -> bytes:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                found = file.read(n)
                if n > _HEADER:
                    file.read(1)  # at the end, the checksum is compared
                return found
        except (OSError, EOFError, zlib.error) as error:
            raise CorruptBlobError(f"expected a NIfTI file that gzip can read: {error}") from None

    return read


def _version(head: bytes) -> tuple[int, str] | None:
    """Version and order of bytes of a NIfTI header; None if it is none."""
    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if size == 348 and head[344:348] == b"n+1\0":
            return 1, order
        if size == 540 and head[4:8] == b"n+2\0":
            return 2, order
    return None


def _affine(values: dict[str, tuple[Any, ...]]) -> npt.NDArray[np.float64]:
    q_code, s_code = values["codes"]
    affine = np.eye(4)
    if s_code > 0:
        affine[:3] = np.reshape(values["srow"], (3, 4))
    else:
        zooms = np.abs(np.asarray(values["pixdim"][1:4], np.float64))
        zooms[~np.isfinite(zooms) | (zooms == 0)] = 1
        affine[:3, :3] = np.diag(zooms)
        if q_code > 0:
            b, c, d, *origin = (float(value) for value in values["quatern"])
            turn = _turn(b, c, d)
            zooms[2] *= -1 if values["pixdim"][0] < 0 else 1
            affine[:3, :3] = turn * zooms
            affine[:3, 3] = origin
    if not np.isfinite(affine).all():
        raise CorruptBlobError("expected places in millimetres, found numbers that are not finite")
    return affine


def _turn(b: float, c: float, d: float) -> npt.NDArray[np.float64]:
    """The rotation of a quaternion whose first part is not negative."""
    rest = 1 - (b * b + c * c + d * d)
    a = math.sqrt(rest) if rest > 0 else 0.0
    length = math.sqrt(a * a + b * b + c * c + d * d) or 1.0
    a, b, c, d = a / length, b / length, c / length, d / length
    return np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
