"""Encoded volumes: of NIfTI and DICOM."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.schema.array import dtype_name, numpy_dtype
from tensordb_data.schema.field import BlobField, Buffer, Element, describe
from tensordb_data.schema.media.dicom import dicom_affine, is_dicom, is_series, read_dicom
from tensordb_data.schema.media.files import given_bytes
from tensordb_data.schema.media.nifti import is_nifti, read_header, read_nifti
from tensordb_data.schema.media.scaling import Voxels, held
from tensordb_data.schema.media.turning import is_orientation, turned


@dataclasses.dataclass(frozen=True, repr=False)
class Volume(BlobField):
    """An encoded volume, given as its bytes or as a `pathlib.Path`: NIfTI (`.nii`, `.nii.gz`), or DICOM.

    It is stored byte for byte. A series of DICOM files is stored as a ZIP file with all of them, not compressed, as
    `db.data.ingest` makes it. It is read as an array of the values that are meant, with slope and intercept applied: of
    NIfTI in the order of its dimensions, [x, y, z]; of DICOM [slices, rows, columns], by their places in space. The
    array is not turned, unless `orient` says so. DICOM needs pydicom, the extra `tensordb-data[medical]`. A volume of
    more than a thousand million numbers is not decoded, unless the environment variable `TENSORDB_MAX_VOXELS` says so.

    Args:
        dtype: Of the array. An integer type refuses values that it does not hold.
        optional: Whether samples may leave the field out.
        orient: Where the axes of the array go, `"RAS"` for [to the right, to the front, to the top]; None as in
            the file. Axes are swapped and turned round, and no value is computed anew. A volume that does not say how
            it lies in space is refused.
    """

    dtype: str = "float32"
    orient: str | None = dataclasses.field(default=None, kw_only=True)

    kind: ClassVar[str] = "volume"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if numpy_dtype(self.dtype).kind not in "iuf":
            raise SchemaError(f"expected a dtype of whole or real numbers for a volume, found {self.dtype}")
        if self.orient is not None and not is_orientation(self.orient):
            raise SchemaError(f"expected an orient such as 'RAS', a letter for each direction, found {self.orient!r}")

    def to_doc(self) -> dict[str, Any]:
        doc = self._doc(kind=self.kind, dtype=self.dtype)
        return doc if self.orient is None else {**doc, "orient": self.orient}

    @property
    def element(self) -> Element:
        return self.dtype, None

    def _check(self, value: Any) -> None:
        self.encode(value)

    def encode(self, value: Any) -> Buffer:
        data = given_bytes(value, "a volume")
        if not (is_nifti(data) or is_dicom(data) or is_series(data)):
            raise SchemaError(
                f"expected the bytes of a NIfTI or DICOM file, or of a ZIP file of a series of these, found"
                f" {describe(data)}; arrays are for Array('int16', (None, None, None))"
            )
        return data

    def decode(self, buf: Buffer) -> Voxels:
        if is_dicom(buf) or is_series(buf):
            values = read_dicom(buf)
            if self.orient is not None:
                values = turned(values, dicom_affine(buf), self.orient)
        elif is_nifti(buf):
            values = read_nifti(buf)
            if self.orient is not None:
                values = turned(values, read_header(buf).affine, self.orient)
        else:
            raise CorruptBlobError(f"expected a volume, found {len(buf)} bytes beginning {bytes(buf[:8])!r}")
        return held(values, numpy_dtype(self.dtype))
