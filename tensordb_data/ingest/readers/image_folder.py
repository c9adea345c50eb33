"""Folders of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError, StorageError, TensorDBError
from tensordb_data.ingest.engine.format1 import old_key
from tensordb_data.ingest.in_place import Range, bytes_of
from tensordb_data.ingest.open import IMAGES
from tensordb_data.ingest.readers.layout import Layout, find_layout
from tensordb_data.ingest.readers.metadata import Metadata
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_REFERENCED, CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.image import is_deep, is_gray, is_image
from tensordb_data.schema.image_header import has_more_frames, read_header
from tensordb_data.schema.palette import palette_bits

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_UNREAD = (".heic", ".heif", ".ico", ".pcx", ".psd", ".tga")
_TABLES = (".csv", ".jsonl", ".parquet", ".tsv")
_CHUNK_FILES = 1024
_FIRST = "of images with several frames, the first is read"
_HEAD = 64  # bytes that tell whether an image has more frames
_HEADER = 64 << 10  # bytes that hold the header of nearly every image


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
        self.can_refer = True
        files = given.files
        self.id, self.root = files.id, files.root
        self._about = Metadata(given, files.files)
        tables = {file.name for file in self._about.files}
        found = {file.name: file for file in files.files if file.name not in tables and self._is_image(file)}
        if not found:
            raise SchemaError(
                f"{files.root}: expected images in a folder a class, found none; ignored: "
                + (", ".join(f"{n} {suffix}" for suffix, n in given.report.ignored.items()) or "nothing")
            )
        self._by_name = found
        names = self._described(found) if self._about else list(found)
        split = given.reading.split == "auto" and "split" not in self._about.fields
        self._layout: Layout = find_layout(names, given.report.fail, split=split, label=not self._about)
        self.files = [self._with_more(found[name], place.mask) for name, place in self._layout.places.items()]

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        layout, text = self._layout, Scalar("str")
        fields: dict[str, Field] = {"image": wanted.get("image") or self._image_field(files)}
        if layout.has_masks:
            lacking = any(place.mask is None for place in layout.places.values())
            fields["mask"] = wanted.get("mask") or dataclasses.replace(self._mask_field(files), optional=lacking)
        if layout.classes:
            fields |= {"label": wanted.get("label") or Scalar("int"), "class": wanted.get("class") or text}
        if layout.has_split:
            fields["split"] = wanted.get("split") or text
        for column, name in self._about.linked.items():
            lacking = any(self._about.row(path).get(column) is None for path in layout.places)
            fields[name] = wanted.get(name) or Image("unchanged", optional=lacking)
        fields.update({name: wanted.get(name) or field for name, field in self._about.fields.items()})
        return {**fields, "path": wanted.get("path") or text}

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        labels = self._labels()
        for group in self._groups(files):
            yield self._chunk(group, labels)

    def _chunk(self, files: Sequence[FileInfo], labels: Mapping[str, int]) -> Chunk:
        layout = self._layout
        columns: dict[str, list[Any]] = {"image": [], "path": []}
        columns |= {name: [] for name in ("label", "class") if layout.classes}
        columns |= {"split": []} if layout.has_split else {}
        columns |= {"mask": []} if layout.has_masks else {}
        columns |= {name: [] for name in (*self._about.linked.values(), *self._about.fields)}
        good: list[FileInfo] = []
        for file, read in zip(files, self._given.map(self._read_all, files), strict=True):
            broken = [(name, data) for name, data in read.values() if isinstance(data, TensorDBError)]
            for name, data in broken:
                self._given.report.fail(name, str(data))
            if broken:
                continue
            place = layout.places[file.name]
            row: dict[str, Any] = {"path": file.name, "split": place.split, "class": place.label,
                                   "label": labels.get(place.label or "")}  # fmt: skip
            row.update(self._about.row(file.name) if self._about else {})
            row.update({name: data for name, (_, data) in read.items()})
            if any(_has_more(data) for _, data in read.values()):
                self._given.report.note(_FIRST)
            for name, column in columns.items():
                column.append(row.get(name))
            good.append(file)
        return Chunk(
            columns,
            keys=[file.name.encode() for file in good],
            where=[file.name for file in good],
            nbytes=sum(file.size for file in files),
            done=good,
            old_keys=lambda: [
                old_key(f.name, 0, bytes_of(data)) for f, data in zip(good, columns["image"], strict=True)
            ],
        )

    def _read_all(self, file: FileInfo) -> dict[str, tuple[str, Any]]:
        """The image, its mask and what else is linked: by field, the name of the file, and its bytes or the error."""
        names = {"image": file.name}
        if (mask := self._layout.places[file.name].mask) is not None:
            names["mask"] = mask
        for column, name in self._about.linked.items():
            if isinstance(linked := self._about.row(file.name).get(column), str):
                names[name] = linked
        return {name: (path, self._read(path)) for name, path in names.items()}

    def _described(self, found: Mapping[str, FileInfo]) -> list[str]:
        """The images of which a table says something. The others are named."""
        about, fail = self._about, self._given.report.fail
        about.read(self._given.columns.types or {})  # type: ignore[arg-type]
        paths, others = about.paths, about.others
        for path in sorted(paths - set(found)):
            fail(path, f"is named in {about.table_of(path)}, and is no image that is there")
        names = []
        for name in found:
            if name in paths:
                names.append(name)
            elif name not in others:
                table = about.table_of(name)
                fail(
                    name,
                    "has no table of metadata above it, as others do" if table is None else f"has no row in {table}",
                )
        return names

    def _with_more(self, file: FileInfo, mask: str | None) -> FileInfo:
        """An image with what belongs to it, which changes when any of it does."""
        more: list[Any] = [] if mask is None else [self._by_name[mask]]
        said = ""
        if self._about:
            linked = (self._about.row(file.name).get(column) for column in self._about.linked)
            more += [self._by_name[name] for name in linked if name in self._by_name]
            said = self._about.stamp(file.name)
        if not more and not said:
            return file
        stamps = [file.stamp, *(f"{other.size} {other.stamp}" for other in more if other.stamp is not None), said]
        known = file.stamp is not None and all(other.stamp is not None for other in more)
        size = file.size + sum(other.size for other in more)
        return FileInfo(file.name, size, " ".join(map(str, stamps)) if known else None)

    def _is_image(self, file: FileInfo) -> bool:
        """Whether a file is an image, by its suffix; by its first bytes if the suffix does not tell."""
        if file.name.lower().endswith(IMAGES):
            if file.name.lower().endswith(".gif"):
                self._given.report.note(_FIRST)
            return True
        suffix = file.name.rpartition("/")[2].rpartition(".")
        if (
            not suffix[0]
            and file.size
            and self._given.files.folder is not None
            and _begins_an_image(self._head(file, 64))
        ):
            return True
        name, report = file.name.lower(), self._given.report
        if name.endswith(_UNREAD):
            report.fail(file.name, f".{name.rpartition('.')[2]} is not read: convert it to JPEG or PNG")
            return False
        if name.endswith(_TABLES):
            report.note(
                f"{file.name} was not read: call it metadata.{name.rpartition('.')[2]} if it is about these images, or"
                " ingest it by itself with files="
            )
        report.ignore(file.name)
        return False

    def _labels(self) -> dict[str, int]:
        numbered = dict(self._given.labels()) if self._layout.classes else {}
        for name in self._layout.classes:
            numbered.setdefault(name, max(numbered.values(), default=-1) + 1)
        return numbered

    def _read(self, name: str) -> Any:
        file = self._by_name.get(name)
        try:
            if file is None:
                raise SchemaError("there is no such image")
            return self._given.whole(file)
        except TensorDBError as error:
            return error

    def _image_field(self, files: Sequence[FileInfo]) -> Image:
        kinds = [kind for kind in self._given.map(self._kind, files) if kind is not None]
        gray = bool(kinds) and all(gray for gray, _ in kinds)
        deep = bool(kinds) and all(deep for _, deep in kinds)
        return Image("gray" if gray else "rgb", "uint16" if deep else "uint8")

    def _mask_field(self, files: Sequence[FileInfo]) -> Image:
        """That of masks: the indices of palettes, if all masks have indices or gray values, and one has a palette."""
        named = (self._layout.places[file.name].mask for file in files)
        masks = [self._by_name[name] for name in named if name is not None]
        heads = list(self._given.map(lambda file: self._head(file, _HEADER), masks))
        gray = [is_gray(head) for head in heads]
        if any(map(palette_bits, heads)) and all(palette_bits(h) or g for h, g in zip(heads, gray, strict=True)):
            return Image("index")
        return Image("unchanged", "uint16" if heads and all(map(is_deep, heads)) else "uint8")

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
        stay = self._given.in_place is not None
        most, files_at_once = (CHUNK_REFERENCED, CHUNK_ROWS) if stay else (CHUNK_BYTES, _CHUNK_FILES)
        for file in files:
            group.append(file)
            nbytes += file.size
            if nbytes >= most or len(group) >= files_at_once:
                yield group
                group, nbytes = [], 0
        if group:
            yield group


def _begins_an_image(head: bytes) -> bool:
    return is_image(head) or read_header(head) is not None


def _has_more(data: Any) -> bool:
    """Whether an image has more than one frame. Of one that stays where it is, the beginning tells, but for a TIFF."""
    if not isinstance(data, Range):
        return not isinstance(data, TensorDBError) and has_more_frames(data)
    try:
        head = dataclasses.replace(data, length=min(_HEAD, data.length)).read()
        return has_more_frames(data.read() if head[:2] in (b"II", b"MM") else head)
    except StorageError:
        return False  # who reads all of it says so
