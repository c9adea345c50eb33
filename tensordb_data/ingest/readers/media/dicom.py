"""Folders of DICOM files: the files of a series are one sample."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError, TensorDBError
from tensordb_data.ingest.readers.media.folder import MediaFolder, Part
from tensordb_data.ingest.registry import DICOM
from tensordb_data.ingest.source import FileInfo
from tensordb_data.schema import Field, Scalar, Volume
from tensordb_data.schema.media.dicom import (
    affine_of,
    has_pixels,
    is_dicom,
    is_even,
    kind_of,
    number,
    numbers,
    order_of,
    pack,
    plain_dtype,
    read_from,
    value_of,
)

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_TEXTS = {"modality": "Modality", "body_part": "BodyPartExamined", "manufacturer": "Manufacturer",
          "photometric": "PhotometricInterpretation", "study_uid": "StudyInstanceUID",
          "series_uid": "SeriesInstanceUID"}  # fmt: skip
"""The only texts that go into the index. None of them names a patient."""
_LONGEST = 64  # characters of a value of DICOM that is a name of something


def open_dicom(given: Given) -> DicomFolder:
    """A folder of DICOM files, or a list or glob of them."""
    return DicomFolder(given)


class DicomFolder(MediaFolder):
    """DICOM: fields `volume`, `path`, `affine`, `spacing`, `slices`, a fixed list of tags, and those of `tags=`.

    A series is a sample.

    The files of a series are stored as they are, and with them all that they say. The index has no name of a patient,
    unless `path` has. Files without pixels are left out. Folders are no classes.
    """

    column = "volume"
    what = "DICOM files with pixels"
    suffixes = DICOM
    classes = False
    has_tags = True

    def __init__(self, given: Given) -> None:
        self._tags: dict[str, Any] = {}
        self._asked = {keyword: kind_of(keyword) for keyword in given.reading.tags}
        super().__init__(given)

    def _is_wanted(self, file: FileInfo) -> bool:
        name = file.name.rpartition("/")[2].lower()
        if name.endswith(self.suffixes):
            return True
        if "." not in name.lstrip("0123456789.") and name != "dicomdir" and self._begins(file):
            return True
        self._given.report.ignore(file.name)
        return False

    def _begins(self, file: FileInfo) -> bool:
        """Whether a file without a suffix of DICOM is one."""
        try:
            with self._given.open(file) as opened:
                return is_dicom(opened.read(132))
        except (TensorDBError, OSError):
            return False

    def parts_of(self, files: Sequence[FileInfo]) -> Sequence[Part]:
        series: dict[tuple[str, str], list[FileInfo]] = {}
        for file, tags in zip(files, self._given.map(self._read_tags, files), strict=True):
            if isinstance(tags, TensorDBError):
                self._given.report.fail(file.name, str(tags))
            elif "SOPClassUID" not in tags:
                self._given.report.fail(file.name, "expected a DICOM file that says what it is, found a damaged one")
            elif not has_pixels(tags):
                self._given.report.ignore(file.name)
            else:
                self._tags[file.name] = tags
                uid = str(tags.get("SeriesInstanceUID", ""))[:_LONGEST] or file.name
                series.setdefault((posixpath.dirname(file.name), uid), []).append(file)
        return list(self._series(series))

    def _series(self, series: Mapping[tuple[str, str], list[FileInfo]]) -> Iterator[Part]:
        for (folder, uid), files in series.items():
            if len(files) == 1:
                yield Part(files[0].name, files)
                continue
            try:
                order = order_of([self._tags[file.name] for file in files])
            except TensorDBError as error:
                self._given.report.fail(f"{folder or self.root}, series {uid}", str(error))
                continue
            yield Part(f"{folder}/{uid}" if folder else uid, [files[number] for number in order])

    def _read_tags(self, file: FileInfo) -> Any:
        try:
            with self._given.open(file) as opened:
                return read_from(opened, more=self._asked)
        except MissingExtraError:
            raise
        except TensorDBError as error:
            return error

    @property
    def facts(self) -> Mapping[str, Field]:
        kinds = {"affine": "json", "spacing": "json", "slice_thickness": "float", **dict.fromkeys(_TEXTS, "str")}
        return {"slices": Scalar("int"), **{name: Scalar(kind, optional=True) for name, kind in kinds.items()},
                **{keyword: Scalar(kind, optional=True) for keyword, kind in self._asked.items()}}  # fmt: skip

    def field_of(self, parts: Sequence[Part]) -> Field:
        kinds = {plain_dtype(self._tags[file.name]) for part in parts for file in part.files}
        return Volume(next((kind for kind in ("float32", "int32", "int16") if kind in kinds), "float32"))

    def read(self, part: Part) -> tuple[bytes, Mapping[str, Any]]:
        files = [self._given.files.read(file) for file in part.files]
        slices = [self._tags[file.name] for file in part.files]
        if not is_even(slices):
            self._given.report.note(f"{part.name}: its slices lie at different distances: is one missing?")
        affine, spacing = affine_of(slices), numbers(slices[0], "PixelSpacing", 2)
        facts: dict[str, Any] = {
            "affine": None if affine is None else affine.tolist(),
            "spacing": None if spacing is None else spacing.tolist(),
            "slices": sum(max(1, int(number(tags, "NumberOfFrames", 1))) for tags in slices),
            "slice_thickness": number(slices[0], "SliceThickness") or None,
        }
        for name, tag in _TEXTS.items():
            facts[name] = _text(slices[0], tag)
        for keyword, kind in self._asked.items():
            values = [value_of(tags, keyword, kind) for tags in slices]
            facts[keyword] = values[0]
            if any(value != values[0] for value in values[1:]):
                self._given.report.note(
                    f"{part.name}: {keyword} is not the same in all slices, that of the first is taken"
                )
        return files[0] if len(files) == 1 else pack(files), facts


def _text(tags: Any, name: str) -> str | None:
    try:
        found = tags.get(name)
        text = str(found) if found is not None else ""
    except Exception:  # values are read when they are asked for, and may be of any form
        return None
    return "".join(char for char in text if char.isprintable())[:_LONGEST] or None
