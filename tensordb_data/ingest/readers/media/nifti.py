"""Folders of NIfTI files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import TensorDBError
from tensordb_data.ingest.readers.media.folder import MediaFolder, Part
from tensordb_data.ingest.registry import NIFTI
from tensordb_data.schema import Field, Scalar, Volume
from tensordb_data.schema.media.nifti import read_header

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_HEAD = 64 << 10  # bytes in which a header lies, also compressed


def open_nifti(given: Given) -> NiftiFolder:
    """A folder of NIfTI files, or a list or glob of them."""
    return NiftiFolder(given)


class NiftiFolder(MediaFolder):
    """NIfTI: fields `volume`, `path`, `affine`, `shape`, and what folders and tables say.

    `affine` is a list of four rows, from the indices of the array to millimetres, to the right, the front and the top.
    """

    column = "volume"
    what = "NIfTI files"
    suffixes = NIFTI
    unread = (".hdr", ".img")

    @property
    def facts(self) -> Mapping[str, Field]:
        return {"affine": Scalar("json"), "shape": Scalar("json")}

    def field_of(self, parts: Sequence[Part]) -> Field:
        found = {kind for kind in self._given.map(self._dtype, parts) if kind is not None}
        return Volume(found.pop() if len(found) == 1 else "float32")

    def _dtype(self, part: Part) -> str | None:
        try:
            with self._given.open(part.files[0]) as file:
                return read_header(file.read(_HEAD)).plain_dtype
        except (TensorDBError, OSError):
            return None

    def read(self, part: Part) -> tuple[bytes, Mapping[str, Any]]:
        data = self._given.files.read(part.files[0])
        header = read_header(data)
        return data, {"affine": header.affine.tolist(), "shape": list(header.shape)}
