"""Folders of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.engine.format1 import old_key
from tensordb_data.ingest.open import IMAGES
from tensordb_data.ingest.readers.layout import Layout, find_layout
from tensordb_data.ingest.source import CHUNK_BYTES, Chunk, FileInfo
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.image import is_deep, is_gray, is_image
from tensordb_data.schema.image_header import read_header

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_CHUNK_FILES = 1024
_HEADER = 64 << 10  # bytes that hold the header of nearly every image
_FEW = 16


def open_images(given: Given) -> ImageFolder:
    """A folder of images, or a list or glob of images."""
    return ImageFolder(given)


class ImageFolder:
    """Images: fields `image`, `path`, and what the folders say: `class` and `label`, `split`, `mask`.

    Labels number the classes in alphabetical order; classes that a dataset has already keep their numbers. Files are
    kept as they are. They are decoded as gray when all of them are gray and as RGB otherwise, so that a mixed folder
    gives one shape of array (transparency is dropped). A file is an image if its first bytes say so, whatever its name.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        files = given.files
        self.id, self.root = files.id, files.root
        found = {file.name: file for file in files.files if self._is_image(file)}
        if not found:
            raise SchemaError(
                f"{files.root}: expected images in a folder a class, found none; ignored: "
                + (", ".join(f"{n} {suffix}" for suffix, n in given.report.ignored.items()) or "nothing")
            )
        wants_split = given.reading.split == "auto"
        self._layout: Layout = find_layout(list(found), given.report.fail, split=wants_split, label=True)
        self._by_name = found
        self.files = [self._with_mask(found[name], place.mask) for name, place in self._layout.places.items()]

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        layout, text = self._layout, Scalar("str")
        fields: dict[str, Field] = {"image": wanted.get("image") or self._image_field(files)}
        if layout.has_masks:
            lacking = any(place.mask is None for place in layout.places.values())
            fields["mask"] = wanted.get("mask") or Image("unchanged", self._mask_dtype(files), optional=lacking)
        if layout.classes:
            fields |= {"label": wanted.get("label") or Scalar("int"), "class": wanted.get("class") or text}
        if layout.has_split:
            fields["split"] = wanted.get("split") or text
        return {**fields, "path": wanted.get("path") or text}

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        labels = self._labels()
        for group in self._groups(files):
            yield self._chunk(group, labels)

    def _chunk(self, files: Sequence[FileInfo], labels: Mapping[str, int]) -> Chunk:
        layout, names = self._layout, [file.name for file in files]
        masks = [layout.places[name].mask for name in names]
        read = list(self._given.map(self._read, [*files, *(self._by_name[mask] for mask in masks if mask is not None)]))
        of_masks = iter(read[len(files) :])
        columns: dict[str, list[Any]] = {"image": [], "path": []}
        columns |= {name: [] for name in ("label", "class") if layout.classes}
        columns |= {"split": []} if layout.has_split else {}
        columns |= {"mask": []} if layout.has_masks else {}
        good: list[FileInfo] = []
        for file, image, mask_name in zip(files, read[: len(files)], masks, strict=True):
            mask = None if mask_name is None else next(of_masks)
            for name, data in ((file.name, image), (mask_name, mask)):
                if isinstance(data, TensorDBError):
                    self._given.report.fail(str(name), str(data))
            if isinstance(image, TensorDBError) or isinstance(mask, TensorDBError):
                continue
            place = layout.places[file.name]
            row = {"image": image, "path": file.name, "mask": mask, "split": place.split, "class": place.label,
                   "label": labels.get(place.label or "")}  # fmt: skip
            for name, column in columns.items():
                column.append(row[name])
            good.append(file)
        return Chunk(
            columns,
            keys=[file.name.encode() for file in good],
            where=[file.name for file in good],
            nbytes=sum(file.size for file in files),
            done=good,
            old_keys=lambda: [old_key(f.name, 0, data) for f, data in zip(good, columns["image"], strict=True)],
        )

    def _with_mask(self, file: FileInfo, mask: str | None) -> FileInfo:
        """An image with its mask, which changes when one of them does."""
        if mask is None:
            return file
        other = self._by_name[mask]
        stamp = None if file.stamp is None or other.stamp is None else f"{file.stamp} {other.size} {other.stamp}"
        return FileInfo(file.name, file.size + other.size, stamp)

    def _is_image(self, file: FileInfo) -> bool:
        """Whether a file is an image, by its suffix; by its first bytes if the suffix does not tell."""
        if file.name.lower().endswith(IMAGES):
            return True
        suffix = file.name.rpartition("/")[2].rpartition(".")
        if (
            not suffix[0]
            and file.size
            and self._given.files.folder is not None
            and _begins_an_image(self._head(file, 64))
        ):
            return True
        self._given.report.ignore(file.name)
        return False

    def _labels(self) -> dict[str, int]:
        numbered = dict(self._given.labels()) if self._layout.classes else {}
        for name in self._layout.classes:
            numbered.setdefault(name, max(numbered.values(), default=-1) + 1)
        return numbered

    def _read(self, file: FileInfo) -> bytes | TensorDBError:
        try:
            return self._given.files.read(file)
        except TensorDBError as error:
            return error

    def _image_field(self, files: Sequence[FileInfo]) -> Image:
        kinds = [kind for kind in self._given.map(self._kind, files) if kind is not None]
        gray = bool(kinds) and all(gray for gray, _ in kinds)
        deep = bool(kinds) and all(deep for _, deep in kinds)
        return Image("gray" if gray else "rgb", "uint16" if deep else "uint8")

    def _mask_dtype(self, files: Sequence[FileInfo]) -> str:
        masks = [mask for file in files[:_FEW] if (mask := self._layout.places[file.name].mask) is not None]
        kinds = [self._kind(self._by_name[mask]) for mask in masks]
        return "uint16" if any(kind is not None and kind[1] for kind in kinds) else "uint8"

    def _kind(self, file: FileInfo) -> tuple[bool, bool] | None:
        """Whether an image is gray, and whether it has 16 bits a channel; None if its header cannot be read."""
        data = self._head(file, _HEADER)
        if is_gray(data) is None and len(data) == _HEADER:
            data = self._head(file, -1)
        gray = is_gray(data)
        return None if gray is None else (gray, is_deep(data))

    def _head(self, file: FileInfo, size: int) -> bytes:
        try:
            with self._given.open(file) as opened:
                return opened.read(size)
        except (TensorDBError, OSError):
            return b""

    def _groups(self, files: Sequence[FileInfo]) -> Iterator[list[FileInfo]]:
        group: list[FileInfo] = []
        nbytes = 0
        for file in files:
            group.append(file)
            nbytes += file.size
            if nbytes >= CHUNK_BYTES or len(group) >= _CHUNK_FILES:
                yield group
                group, nbytes = [], 0
        if group:
            yield group


def _begins_an_image(head: bytes) -> bool:
    return is_image(head) or read_header(head) is not None
