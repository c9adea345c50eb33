"""Folders of YOLO as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.open import IMAGES
from tensordb_data.ingest.places import Files, find_files
from tensordb_data.ingest.readers.boxes.images import Images, annotation_fields, local_folder
from tensordb_data.ingest.readers.boxes.yolo import label_path, read_config, read_labels
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_CHUNK = 1024
_MOST_LABELS = 16 << 20
_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml")


def open_yolo(given: Given) -> YoloFolder:
    """A folder with `data.yaml`, or this file."""
    return YoloFolder(given)


class YoloFolder:
    """A row for each image: `image`, `path`, `width`, `height`, `annotations`, and `split`.

    The text file of an image lies in `labels/` where the image lies in `images/`. An image without one shows nothing,
    and its annotations are empty.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        folder = local_folder(given, "annotations of YOLO")
        config = self._config_file(given.files)
        self._config = read_config(given.files.read(config))
        place = self._place(folder, config)
        self._files = given.files if place == folder and len(given.files.files) > 1 else find_files(
            str(place), given.report.fail)  # fmt: skip
        self._images = Images(place)
        self._names = {file.name: file for file in self._files.files}
        self._split_of: dict[str, str] = {}
        self.files = list(self._found())

    def _place(self, folder: Path, config: FileInfo) -> Path:
        """The folder of the images.

        Raises:
            SchemaError: `data.yaml` names one outside of the source, and nobody else does.
        """
        if self._given.reading.images is not None:
            return Path(os.path.abspath(self._given.reading.images))
        here = Path(os.path.normpath(folder / Path(config.name).parent))
        named = Path(os.path.normpath(here / self._config.path))
        if not named.is_dir():  # written for another machine
            return here
        if not named.is_relative_to(folder):
            raise SchemaError(f"{config.name} names the folder {named}, which is not below {folder}: if it is meant, "
                              f"say images={str(named)!r}")  # fmt: skip
        return named

    def _config_file(self, files: Files) -> FileInfo:
        found = [file for file in files.files if file.name.rpartition("/")[2] in _CONFIGS]
        if len(files.files) == 1:
            found = list(files.files)
        if not found:
            raise SchemaError(f"{files.root}: expected {_CONFIGS[0]}, which names the classes: name the file")
        return min(found, key=lambda file: file.name.count("/"))

    def _found(self) -> Iterator[FileInfo]:
        """The images, each with its text file: it changes when one of them does."""
        report = self._given.report
        labels: dict[str, str] = {}
        known = {label_path(name) for name in self._names if name.lower().endswith(IMAGES)}
        for name, file in self._names.items():
            if not name.lower().endswith(IMAGES):
                if name.endswith(".txt") and "labels" in name.split("/")[:-1] and name not in known:
                    report.fail(name, "there is no image of this text file")
                continue
            split = self._split(name)
            if split is None and self._config.splits:
                report.ignore(name)
                continue
            label = label_path(name)
            if label in labels:
                report.fail(name, f"{labels[label]} and this image have one text file, {label}")
                continue
            labels[label] = name
            if split is not None:
                self._split_of[name] = split
            text = self._names.get(label)
            stamp = None if file.stamp is None else f"{file.stamp} {text and text.stamp} {text and text.size}"
            yield FileInfo(name, file.size + (text.size if text else 0), stamp)

    def _split(self, name: str) -> str | None:
        for split, entries in self._config.splits.items():
            for entry in entries:
                path = self._relative(entry)
                if path in ("", ".") or name.startswith(f"{path}/") or name in self._list(path):
                    return split
        return None

    def _relative(self, entry: str) -> str:
        """An entry of `data.yaml` as a path below the folder of the images."""
        path = os.path.normpath(entry)
        if os.path.isabs(path):
            path = os.path.relpath(path, self._images.folder)
        while path.startswith("../"):  # some tools write paths from a folder beside
            path = path[3:]
        return PurePosixPath(path).as_posix()

    def _list(self, path: str) -> frozenset[str]:
        """The images that a text file of `data.yaml` lists."""
        memo = self._given.memo.setdefault("lists", {})
        if path not in memo:
            memo[path] = frozenset()
            if path.endswith(".txt") and path in self._names:
                lines = self._files.read(self._names[path]).decode(errors="replace").splitlines()
                memo[path] = frozenset(self._relative(line.strip()) for line in lines if line.strip())
        found: frozenset[str] = memo[path]
        return found

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        fields = annotation_fields(wanted, path=Scalar("str"))
        is_free = self._given.reading.split == "auto" and "split" not in (self._given.columns.set or {})
        if self._split_of and is_free:
            fields["split"] = wanted.get("split") or Scalar("str")
        self._fields = fields
        self._images = Images(self._images.folder, fields["image"])
        return fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for low in range(0, len(files), _CHUNK):
            some = files[low : low + _CHUNK]
            rows, good = [], []
            for file in some:
                try:
                    rows.append(self._row(file))
                    good.append(file)
                except TensorDBError as error:
                    self._given.report.fail(file.name, str(error))
            yield Chunk(
                {name: [row[name] for row in rows] for name in self._fields},
                keys=[file.name.encode() for file in good],
                nbytes=sum(file.size for file in some),
                done=good,
            )

    def _row(self, file: FileInfo) -> dict[str, Any]:
        size = self._images.size(file.name)
        if size is None:
            raise SchemaError("its header does not say its size, by which boxes are multiplied")
        label = self._names.get(label_path(file.name))
        text = "" if label is None else self._text(label)
        return {"image": self._images.path(file.name), "path": file.name, "width": size[0], "height": size[1],
                "annotations": read_labels(text, *size, self._config),
                "split": self._split_of.get(file.name)}  # fmt: skip

    def _text(self, file: FileInfo) -> str:
        if file.size > _MOST_LABELS:
            raise SchemaError(f"{file.name}: expected the boxes of an image, found {file.size:,} bytes")
        try:
            return self._files.read(file).decode()
        except UnicodeDecodeError as error:
            raise SchemaError(f"{file.name}: expected text, found other bytes at {error.start}") from None
