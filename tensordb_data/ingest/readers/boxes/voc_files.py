"""Folders of Pascal VOC as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.readers.boxes.images import Images, annotation_fields, first_folder, local_folder, numbered
from tensordb_data.ingest.readers.boxes.voc import VocImage, read_voc
from tensordb_data.ingest.readers.layout import SPLITS
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_CHUNK = 1024
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def open_voc(given: Given) -> VocFolder:
    """A folder with an XML file for each image."""
    return VocFolder(given)


class VocFolder:
    """A row for each XML file: `image`, `path`, `width`, `height`, `annotations`, and `split` by `ImageSets/Main`.

    Images are looked for in the folder that `images=` names; in `JPEGImages/` or `images/` beside the folder of the XML
    files; or right beside them. An image is known by its path. Classes are numbered in alphabetical order.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        self._folder = local_folder(given, "annotations of VOC")
        self._xml = {}
        for file in given.files.files:
            if file.name.lower().endswith(".xml"):
                self._xml[file.name] = file
            elif not file.name.endswith((*_SUFFIXES, ".txt")):
                given.report.ignore(file.name)
        if not self._xml:
            raise SchemaError(f"{given.files.root}: expected XML files of VOC, found none")
        self._parsed: dict[str, VocImage] = {}
        self._of: dict[str, tuple[str, str]] = {}
        """The XML file of each row, and the path of its image, by the name of the row."""
        self.files = list(self._found())
        is_free = given.reading.split == "auto" and "split" not in (given.columns.set or {})
        self._split_of = self._splits() if is_free else {}

    def _found(self) -> Iterator[FileInfo]:
        """The images, each with its XML file: it changes when one of them does."""
        folders: dict[str, Path | None] = {}
        for name, file in self._xml.items():
            try:
                self._parsed[name] = parsed = read_voc(self._given.files.read(file))
            except TensorDBError as error:
                self._given.report.fail(name, str(error))
                continue
            stem = PurePosixPath(name).stem
            options = [*([parsed.file_name] if parsed.file_name else []), *(stem + suffix for suffix in _SUFFIXES)]
            options = [each for each in options if "\0" not in each]
            parent = name.rpartition("/")[0]
            if folders.get(parent) is None:
                folders[parent] = first_folder(self._candidates(parent), options)
            folder = folders[parent]
            image = None if folder is None else next((each for each in options if os.path.isfile(folder / each)), None)
            if folder is None or image is None:
                self._given.report.fail(name, f"expected its image {options[0]!r:.100}, found none: name the folder of "
                                        "the images with images=")  # fmt: skip
                continue
            try:
                about = Images(folder).path(image).stat()
            except (OSError, SchemaError) as error:
                self._given.report.fail(name, str(error))
                continue
            row = f"{parent}/{image}" if parent else image
            if row in self._of:
                self._given.report.fail(name, f"is about {image}, as {self._of[row][0]} is")
                continue
            self._of[row] = name, str(folder / image)
            yield FileInfo(row, about.st_size + file.size, f"{file.stamp} {file.size} {about.st_mtime_ns}")

    def _candidates(self, parent: str) -> list[Path]:
        if self._given.reading.images is not None:
            return [Path(self._given.reading.images)]
        here = self._folder / parent
        return [here.parent / "JPEGImages", here.parent / "images", here, here / "JPEGImages", here / "images"]

    def _splits(self) -> dict[str, str]:
        """The split of each image, by its stem, as `ImageSets/Main/train.txt` and others name it."""
        found: dict[str, str] = {}
        for file in self._given.files.files:
            path = PurePosixPath(file.name)
            if path.suffix == ".txt" and path.parent.name == "Main" and path.stem.lower() in SPLITS:
                for line in self._given.files.read(file).decode(errors="replace").splitlines():
                    if line.strip():
                        found[line.split()[0]] = path.stem
        return found

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        fields = annotation_fields(wanted, path=Scalar("str"))
        self._field = fields["image"]
        if self._split_of:
            lacking = any(self._stem(file) not in self._split_of for file in self.files)
            fields["split"] = wanted.get("split") or Scalar("str", optional=lacking)
        return fields

    def _stem(self, file: FileInfo) -> str:
        return PurePosixPath(self._of[file.name][0]).stem

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        names = {each["class"] for parsed in self._parsed.values() for each in parsed.objects}
        labels = {name: label for label, name in enumerate(sorted(names))}
        for low in range(0, len(files), _CHUNK):
            some = files[low : low + _CHUNK]
            rows, good = [], []
            for file in some:
                try:
                    rows.append(self._row(file, labels))
                    good.append(file)
                except TensorDBError as error:
                    self._given.report.fail(file.name, str(error))
            yield Chunk(
                {name: [row[name] for row in rows] for name in _columns(bool(self._split_of))},
                keys=[file.name.encode() for file in good],
                nbytes=sum(file.size for file in some),
                done=good,
            )

    def _row(self, file: FileInfo, labels: Mapping[str, int]) -> dict[str, Any]:
        xml, image = self._of[file.name]
        parsed, path = self._parsed[xml], Path(image)
        images = Images(path.parent, self._field)
        images.check(path.name, parsed.width, parsed.height)
        width, height = images.size(path.name) or (parsed.width, parsed.height)
        return {"image": path, "path": file.name, "width": width, "height": height,
                "annotations": numbered(parsed.objects, labels),
                "split": self._split_of.get(self._stem(file))}  # fmt: skip


def _columns(with_split: bool) -> list[str]:
    return ["image", "path", "width", "height", "annotations", *(["split"] if with_split else [])]
