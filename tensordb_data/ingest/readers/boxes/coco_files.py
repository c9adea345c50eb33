"""Files of COCO annotations, with their images, as a source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.readers.boxes.coco import CocoFile, CocoImage, read_coco
from tensordb_data.ingest.readers.boxes.images import Images, annotation_fields, first_folder, local_folder
from tensordb_data.ingest.readers.layout import SPLITS
from tensordb_data.ingest.readers.shards.columns import Kind, chunks_of, required, splits_of
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.schema import RESERVED

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_TRIED = 20
_SEGMENTS = "segments_info"


def open_coco(given: Given) -> CocoFiles:
    """One or several files of COCO annotations, or a folder of them."""
    return CocoFiles(given)


class CocoFiles:
    """Files of annotations: a row for each image.

    Fields are `image`, `image_id`, `file_name`, `width`, `height`, `annotations`, the other keys of an image, and
    `split`, if the names of all files tell one. A panoptic segmentation has the PNG of its segments as `panoptic`, and
    `annotations` are its segments.

    Images are looked for in the folder that `images=` names; or beside the file, in `images/`, and in folders that are
    called as the file, with the split at its end. An image is known by the file and its id there.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        self._folder = local_folder(given, "annotations of COCO")
        self.files = given.choose((".json",))
        self._refuse_doubles()
        self._read: dict[str, CocoFile | None] = {}
        self._fields: dict[str, Field] = {}
        self._splits = splits_of(given, self.files, _split)

    def _refuse_doubles(self) -> None:
        ends: dict[str, str] = {}
        for file in self.files:
            end = _end(file.name)
            if end in ends and len(self.files) > 1:
                raise SchemaError(f"{ends[end]} and {file.name} are about the same images: name one of them")
            ends[end] = file.name

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        extra: dict[str, Kind] = {}
        rows, sized, panoptic = 0, True, False
        for file in files:
            found = self._file(file)
            if found is None:
                continue
            panoptic = panoptic or found.is_panoptic
            for image in found.images:
                rows += 1
                sized = sized and image.width is not None and image.height is not None
                for name, value in image.extra.items():
                    extra.setdefault(name, Kind()).look(value)
        fields = annotation_fields(wanted, image_id=Scalar("int"), file_name=Scalar("str"))
        if not sized:
            fields |= {name: wanted.get(name) or Scalar("int", optional=True) for name in ("width", "height")}
        if panoptic:
            fields["panoptic"] = wanted.get("panoptic") or Image("rgb", optional=True)
        renamed = self._given.columns.rename or {}
        left = sorted(name for name in extra if name in RESERVED and name not in renamed)
        if left:
            self._given.report.note(f"keys of images that are names of the warehouse are left out: {', '.join(left)}")
        fields |= {name: wanted.get(name) or kind.field(rows) for name, kind in extra.items()
                   if name not in fields and name not in left}  # fmt: skip
        if not rows:
            fields |= required(wanted)
        if self._splits and "split" not in fields:
            fields["split"] = wanted.get("split") or Scalar("str")
        self._fields = fields
        return fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        report = self._given.report
        for file in files:
            found = self._file(file)
            if found is None:
                yield Chunk({name: [] for name in self._fields}, file=file.name)
                continue
            for image, why in found.failed:
                report.fail(f"{file.name}, {image}", why)
            if found.unnamed:
                report.note(f"{file.name}: {found.unnamed:,} categories have no name, and their ids are their classes")
            if found.dropped:
                report.note(f"{file.name}: {found.dropped:,} annotations are of images that it does not name")
            try:
                images = Images(self._images(file, found), self._fields.get("image"))
                segments = Images(self._segments(file, found)) if found.is_panoptic else None
            except SchemaError as error:
                report.fail(file.name, str(error))
                yield Chunk({name: [] for name in self._fields}, file=file.name)
                continue
            yield from chunks_of(file, self._fields, self._rows(file, found, images, segments), report)
            del self._read[file.name]

    def _rows(
        self, file: FileInfo, found: CocoFile, images: Images, segments: Images | None
    ) -> Iterator[tuple[str, dict[str, Any], int]]:
        nbytes = file.size // max(1, len(found.images))
        for image in found.images:
            try:
                row = self._row(image, images, segments)
            except TensorDBError as error:
                self._given.report.fail(f"{file.name}, image {image.id}", str(error))
                continue
            yield str(image.id), {"split": self._splits.get(file.name), **row}, nbytes

    def _row(self, image: CocoImage, images: Images, segments: Images | None) -> dict[str, Any]:
        images.check(image.file_name, image.width, image.height)
        row = {**image.extra, "image": images.path(image.file_name), "image_id": image.id, "file_name": image.file_name,
               "width": image.width, "height": image.height, "annotations": image.annotations}  # fmt: skip
        if segments is not None and image.segments_file is not None:
            row["panoptic"] = segments.path(image.segments_file)
        return row

    def _file(self, file: FileInfo) -> CocoFile | None:
        """The annotations of a file, which are read once; None if it is damaged, which is noted."""
        if file.name not in self._read:
            try:
                with self._given.open(file) as opened:
                    self._read[file.name] = read_coco(opened)
            except TensorDBError as error:
                if len(self.files) == 1:
                    raise SchemaError(f"{file.name}: {error}") from None
                self._given.report.fail(file.name, str(error))
                self._read[file.name] = None
        return self._read[file.name]

    def _images(self, file: FileInfo, found: CocoFile) -> Path:
        if self._given.reading.images is not None:
            return Path(self._given.reading.images)
        here = (self._folder / file.name).parent
        end = _end(file.name)
        candidates = [above / folder for above in (here.parent, here)
                      for folder in (f"images/{end}", end, "images", ".") if folder]  # fmt: skip
        names = [image.file_name for image in found.images[:_TRIED]]
        place = first_folder(candidates, names)
        if place is None and names:
            raise SchemaError(f"expected the images beside the annotations, such as {here.parent / 'images' / end}, "
                              "found none: name their folder with images=")  # fmt: skip
        return place or here

    def _segments(self, file: FileInfo, found: CocoFile) -> Path:
        here = (self._folder / file.name).parent
        stem = file.name.rpartition("/")[2].removesuffix(".json")
        names = [image.segments_file for image in found.images[:_TRIED] if image.segments_file]
        place = first_folder([here / stem, here.parent / stem, here], names)
        if place is None and names:
            raise SchemaError(f"expected the PNG files of the segments in {here / stem}, found none")
        return place or here


def _end(name: str) -> str:
    """What the name of a file ends with, which is the name of the split: `instances_train2017.json`."""
    stem = name.rpartition("/")[2].removesuffix(".json")
    return stem.partition("_")[2] if re.match(r"(instances|panoptic|captions|person_keypoints|stuff)_", stem) else stem


def _split(name: str) -> str | None:
    word = re.sub(r"\d+$", "", re.split(r"[-_.]", name.rpartition("/")[2].removesuffix(".json"))[-1])
    return word if word.lower() in SPLITS else None
